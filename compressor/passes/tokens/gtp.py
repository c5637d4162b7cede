"""GTP: tokens that go are added to their neighbours in the image and in meaning (arXiv 2311.03035).

In every block the `r` patch tokens go whose score is lowest: the attention that a token pays to itself (hard to
regenerate from others) times all that it receives (tells others much), each the maximum over heads (section 3.2). What
goes is handed on along a graph that is made once, of the first tokens: patches that touch in the image, and the eight
most alike of each, normalised on both sides (section 3.3):

    x_k + α·Â·x_p

and sizes change in the same way; a token draws as much attention as all that it stands for. The paper also zeroes small
attention probabilities (its θ): here the attention stays dense, as finding the largest of all N² costs more than the
products that it saves.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class GtpOptions(ScheduleOptions):
    """Options of `gtp`."""

    alpha: float = Field(0.1, gt=0, le=1, description="How much of a token that goes is handed on.")
    proportional: bool = Field(
        True, description="A token draws as much attention as all that it stands for (log-size bias)."
    )


METHOD = Preset(
    "gtp",
    of=TokenReduction,
    Options=GtpOptions,
    fixed={"score": "diag_x_col", "heads": "max", "dropped": "propagate"},
    summary="Hand image tokens that go on to their neighbours in the image and in meaning.",
    paper="arXiv 2311.03035",
)
