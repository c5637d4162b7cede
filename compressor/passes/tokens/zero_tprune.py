"""Zero-TPrune: page rank on the attention graph, then tokens that are like others (arXiv 2305.17328).

Importance stage: tokens vote for those that they attend to, and a vote counts as much as the votes that its token got
itself, s ← Aᵀ·s (weighted page rank, section 3.2); three rounds. Heads whose scores are nearly all alike or pick out
a few tokens do not count, the others enter by their root mean square. Similarity stage (section 3.3): of what is
left, the tokens of the lower half that are most like one of the higher half go too, by the cosine of their keys;
`alike` is their share of all that go. What goes leaves no trace.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class ZeroTPruneOptions(ScheduleOptions):
    """Options of `zero-tprune`."""

    alike: float = Field(0.25, gt=0, lt=1, description="The share of those that go for being like one that stays.")


METHOD = Preset(
    "zero-tprune",
    of=TokenReduction,
    Options=ZeroTPruneOptions,
    fixed={"score": "wpr", "heads": "informative", "select": "topk_alike"},
    summary="Keep the image tokens that rank highest on the attention graph, and one of those that are alike.",
    paper="arXiv 2305.17328",
)
