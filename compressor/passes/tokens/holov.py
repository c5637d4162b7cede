"""HoloV: every crop of the image hands tokens on, by attention and by variety of context (arXiv 2510.02912).

A token's score is the attention of the class token plus 0.09 · the variance of the cosines between its hidden state and
the others of its crop. A crop's share is a softmax over crops of the sums of their scores; what a crop has no room for
is handed on to the others. Crops are two-dimensional regions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import REGIONS, RegionOptions, VisualTokens


class HolovOptions(RegionOptions):
    """Options of `holov`."""

    regions: Literal[4, 9, 16, 25, 36] = Field(9, description=REGIONS)
    temperature: float = Field(1.0, gt=0, description="Of the softmax; the lower it is, the farther budgets differ.")


METHOD = Preset(
    "holov",
    of=VisualTokens,
    Options=HolovOptions,
    fixed={"score": "cls_attn", "select": "regions", "quota": "context"},
    summary="Hand image tokens of every region on, by attention and by variety of what surrounds them.",
    paper="arXiv 2510.02912",
)
