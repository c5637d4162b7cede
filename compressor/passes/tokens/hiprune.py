"""HiPrune: anchors of a middle block with their neighbours, then the tokens of a deep one (arXiv 2508.00553).

A token's score in a block is the attention that it receives from all tokens, averaged over heads. The highest of a
middle block are anchors, of objects; they go on with the patches above, below and beside them. What is left of the
number goes to the highest of the deep block. As one selection: the highest of deep + 2 · (anchor or neighbour).
Neighbours do not wrap around from row to row. `anchors` is the share α: α · K / 5 anchors for K tokens.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens


class HipruneOptions(LayerOptions):
    """Options of `hiprune`."""

    earlier: tuple[Block] = Field(description="The middle block, counted from 1, such as 9 of 24.")
    anchors: float = Field(0.1, gt=0, lt=1, description="The share of the tokens that go on for an anchor's sake.")


METHOD = Preset(
    "hiprune",
    of=VisualTokens,
    Options=HipruneOptions,
    fixed={"score": "received", "select": "neighbours"},
    summary="Hand objects of a middle block with their surroundings on, then what a deep one attends to.",
    paper="arXiv 2508.00553",
)
