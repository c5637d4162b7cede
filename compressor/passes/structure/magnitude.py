"""Magnitude: removes the FFN channels with the least weights; the plainest baseline, the same share from every block.

A channel's score is the product of the norms of its rows in the readers and its column in the writer. No activation is
looked at unless `reconstruct` asks for the least-squares refit. This is the `width` mechanism with both choices made.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from compressor.passes.base import Options, PassFamily
from compressor.passes.structure._width.options import WidthOptions
from compressor.passes.structure.width import Width


class MagnitudeOptions(Options):
    """Options of `magnitude`."""

    sparsity: float = Field(gt=0, lt=1, description="Share of the FFN's channels, and so of its parameters, to remove.")
    reconstruct: bool = Field(True, description="Refit what is left by least squares; false is the plain cut.")
    round_to: int = Field(8, ge=1, description="Widths are multiples of this.")


class Magnitude:
    """The preset: `width` with magnitude importance and uniform allocation."""

    name: ClassVar[str] = "magnitude"
    family: ClassVar[PassFamily] = "structure"
    summary: ClassVar[str] = "Remove the FFN channels with the least weights, the same share from every block."
    Options: ClassVar[type[BaseModel]] = MagnitudeOptions
    calibrated: ClassVar[bool] = True

    def __init__(self, options: MagnitudeOptions) -> None:
        """Take validated options; every call goes to a `Width`."""
        width = Width(WidthOptions(importance="magnitude", allocation="uniform", **options.model_dump()))
        self.needs_dense, self.walks, self.foreseen = width.needs_dense, width.walks, width.foreseen
        self.plan, self.survey, self.begin = width.plan, width.survey, width.begin
        self.change_stem, self.change_block, self.change_tail = width.change_stem, width.change_block, width.change_tail
        self.config_updates, self.plan_grids = width.config_updates, width.plan_grids


METHOD = Magnitude
