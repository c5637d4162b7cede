"""FLAP: fluctuation-based pruning of FFN channels (arXiv 2312.11983), with least squares in place of bias compensation.

A channel's score is Var[a_j] · ‖W_down[:, j]‖²: what is lost when a bias takes over its mean. Blocks share the loss
globally, on their own loss curves along that order. Least squares gives what is left the mean and the fluctuation of
what went, where the paper adds a bias that holds the mean alone. This is the `width` mechanism with both choices made.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from compressor.passes.base import Options, PassFamily
from compressor.passes.structure._width.options import WidthOptions
from compressor.passes.structure.width import Width


class FlapOptions(Options):
    """Options of `flap`."""

    sparsity: float = Field(gt=0, lt=1, description="Share of the FFN's channels, and so of its parameters, to remove.")
    reconstruct: bool = Field(True, description="Refit what is left by least squares; false is the plain cut.")
    round_to: int = Field(8, ge=1, description="Widths are multiples of this.")


class Flap:
    """The preset: `width` with fluctuation importance and global allocation."""

    name: ClassVar[str] = "flap"
    family: ClassVar[PassFamily] = "structure"
    summary: ClassVar[str] = "Remove the FFN channels that fluctuate least, weighed by what they write."
    Options: ClassVar[type[BaseModel]] = FlapOptions
    calibrated: ClassVar[bool] = True

    def __init__(self, options: FlapOptions) -> None:
        """Take validated options; every call goes to a `Width`."""
        fixed = {"importance": "flap", "allocation": "global", "weighting": "residual"}
        width = Width(WidthOptions.model_validate({**fixed, **options.model_dump()}))
        self.needs_dense, self.walks, self.foreseen = width.needs_dense, width.walks, width.foreseen
        self.plan, self.survey, self.begin = width.plan, width.survey, width.begin
        self.change_stem, self.change_block, self.change_tail = width.change_stem, width.change_block, width.change_tail
        self.config_updates, self.plan_grids = width.config_updates, width.plan_grids


METHOD = Flap
