"""ToMe: tokens that are alike are merged, a few in every block (arXiv 2210.09461).

Between attention and FFN of a block, every second token is compared with all the others by the cosine of their keys,
averaged over heads; the `r` with the nearest partners join them (section 3, bipartite soft matching):

    x'_j = (s_j·x_j + Σ s_i·x_i) / s'_j,   s'_j = s_j + Σ s_i,   over the tokens i that join j

and in later blocks a token draws as much attention as all that it stands for: softmax(QKᵀ/√d + log s), "proportional
attention". Class and distillation tokens neither go nor take others up.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class TomeOptions(ScheduleOptions):
    """Options of `tome`; at most half of the tokens that are left go in one block."""

    score: Literal["mean_key", "random"] = Field(
        "mean_key", description="What makes tokens alike: their keys; random pairs any, to see what the keys are worth."
    )
    proportional: bool = Field(
        True, description="A merged token draws as much attention as all that it stands for (log-size bias)."
    )
    keep_norm: bool = Field(
        False, description="Of images: a merged token is as long as its parts are on average; their mean is shorter."
    )


METHOD = Preset(
    "tome",
    of=TokenReduction,
    Options=TomeOptions,
    fixed={"select": "bipartite", "dropped": "merge"},
    summary="Merge tokens that are alike, in images r in every block (ToMe); no data needed.",
    paper="arXiv 2210.09461",
)
