"""DiffRate: by the class token's attention some tokens go, the next are merged, the others stay (arXiv 2305.17997).

In every block tokens are sorted by the attention of the class token, averaged over heads (section 3.2). The lowest are
dropped; of those that go, the upper share `merged` joins the token that stays to which it is most like, by the cosine
of keys, as in ToMe: means weighted by sizes, and proportional attention. The paper learns both counts of every block by
gradient; here `flops` searches for them on calibration images, at one share `merged`.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class DiffrateOptions(ScheduleOptions):
    """Options of `diffrate`."""

    merged: float = Field(0.5, gt=0, le=1, description="Of the tokens that go, the share that is merged.")
    proportional: bool = Field(
        True, description="A token draws as much attention as all that it stands for (log-size bias)."
    )


METHOD = Preset(
    "diffrate",
    of=TokenReduction,
    Options=DiffrateOptions,
    fixed={"score": "cls_attn", "dropped": "merge"},
    summary="By the class token's attention, drop the lowest image tokens and merge the next.",
    paper="arXiv 2305.17997",
)
