"""HiRED: a budget for each part of the image, by how much the class token attends to it (arXiv 2408.10945).

The attention that the class token pays to a part in an early block says how much there is to see in it, and its share
of all that attention is its share of the tokens that go on; in each part these are the ones of highest attention in
`layer`. The paper's parts are crops that are encoded apart, weighed by their places in a view of the whole image; here
the encoder reads one image, and parts are regions of it.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block
from compressor.passes.tokens.visual_tokens import RegionOptions, VisualTokens


class HiredOptions(RegionOptions):
    """Options of `hired`."""

    earlier: tuple[Block] = Field((1,), description="The block that budgets are read from, counted from 1.")


METHOD = Preset(
    "hired",
    of=VisualTokens,
    Options=HiredOptions,
    fixed={"score": "cls_attn", "select": "regions", "quota": "attention"},
    summary="Hand image tokens on, of each region as many as the class token's early attention to it says.",
    paper="arXiv 2408.10945",
)
