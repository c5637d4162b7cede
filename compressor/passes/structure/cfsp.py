"""CFSP: coarse-to-fine structured pruning of FFN channels (arXiv 2409.13199), with least-squares reconstruction on.

Coarse, how many channels a block keeps, by how far it turns the residual stream; fine, which ones, by what a channel
writes and reads. This is the `width` mechanism with both choices made; see `width.py`, `allocation.angular` and
`importance.cfsp_score`. The paper recovers by tuning low-rank adapters; here the refit stands in for it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from compressor.passes.base import Options, PassFamily
from compressor.passes.structure._width.options import WidthOptions
from compressor.passes.structure.width import Width


class CfspOptions(Options):
    """Options of `cfsp`."""

    sparsity: float = Field(gt=0, lt=1, description="Share of the FFN's channels, and so of its parameters, to remove.")
    temperature: float = Field(1.0, gt=0, description="High values bring the blocks' widths nearer to each other.")
    reconstruct: bool = Field(True, description="Refit what is left by least squares; false is the paper's plain cut.")
    round_to: int = Field(8, ge=1, description="Widths are multiples of this; the paper's code uses 128.")


class Cfsp:
    """The preset: `width` with CFSP's importance and allocation."""

    name: ClassVar[str] = "cfsp"
    family: ClassVar[PassFamily] = "structure"
    summary: ClassVar[str] = "Remove FFN channels by CFSP's scores, more from blocks that change the stream little."
    Options: ClassVar[type[BaseModel]] = CfspOptions
    calibrated: ClassVar[bool] = True

    def __init__(self, options: CfspOptions) -> None:
        """Take validated options; every call goes to a `Width`."""
        width = Width(WidthOptions(importance="cfsp", allocation="cfsp", **options.model_dump()))
        self.needs_dense, self.walks, self.foreseen = width.needs_dense, width.walks, width.foreseen
        self.plan, self.survey, self.begin = width.plan, width.survey, width.begin
        self.change_stem, self.change_block, self.change_tail = width.change_stem, width.change_block, width.change_tail
        self.config_updates, self.plan_grids = width.config_updates, width.plan_grids


METHOD = Cfsp
