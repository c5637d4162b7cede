"""GPTQ: weights are rounded column by column, and the columns that are left make up for the error (arXiv 2210.17323).

For a weight W and its inputs x, streamed into H = E[x xᵀ], in the order of computation:

    1. correct   W ← (E[y xᵀ] + λW)(H + λI)⁻¹,   y what the dense module makes of the dense inputs; for writers also
                 what the changed residual stream lacks of the dense one
    2. grids     fixed on contiguous groups of W, before any order is chosen, so the packed layout needs no index
    3. feedback  columns by falling diagonal of H; with UᵀU = (H + λI)⁻¹, upper triangular, rounding column j leaves
                 e = (w_j − ŵ_j) / U_jj  and  w_k ← w_k − e·U_jk  for all later k
    4. refine    by turns: least-squares scales for the codes, one sweep of coordinate descent of the codes

Inputs that were never other than 0 take no part: their columns are rounded to the nearest value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor.passes.base import Options
from compressor.passes.quantize._weights.weight_only import WeightOnly, WeightOnlyOptions

if TYPE_CHECKING:
    import torch

    from compressor.passes.numerics.moments import InputStats
    from compressor.storage.grids import Grid, GridSpec


class GptqOptions(WeightOnlyOptions):
    """Options of `gptq`."""

    damping: float = Field(0.01, gt=0, le=1, description="λ, added to the diagonal of H, as a share of its mean.")
    act_order: bool = Field(True, description="Round the columns of the loudest inputs first; groups stay contiguous.")
    clip: Literal["none", "mse"] = Field(
        "none", description="mse: each group's grid covers the part of its range that rounds with the least error."
    )
    correct: bool = Field(
        True,
        description="Fit weights to the dense outputs first, to undo the error of what comes before; takes memory.",
    )
    refine: int = Field(2, ge=0, le=100, description="Turns of fitting scales to codes and codes to scales at the end.")


class Gptq(WeightOnly):
    """See the module."""

    name: str = "gptq"
    summary: ClassVar[str] = "Round weights column by column, later columns making up for the error of earlier ones."
    Options: ClassVar[type[Options]] = GptqOptions

    def __init__(self, options: Any) -> None:
        """Take validated options."""
        super().__init__(options, dense=options.correct)

    def target(self, weight: torch.Tensor, stats: InputStats | None, cross: torch.Tensor | None) -> torch.Tensor:
        """Return the weight that best gives the dense outputs on the inputs that there are."""
        from compressor.passes.numerics.rounding import corrected

        if stats is None or cross is None:
            return weight
        return corrected(weight, stats.gram, cross, self.options.damping)

    def quantize(self, weight: torch.Tensor, spec: GridSpec, stats: InputStats | None) -> tuple[Grid, torch.Tensor]:
        """Round a weight [outputs, inputs]."""
        from compressor.passes.numerics.elimination import damped
        from compressor.passes.numerics.rounding import clipped_grid, descend, feed_back, refit_scales
        from compressor.storage.grids import fit_grid

        assert stats is not None
        o, gram = self.options, stats.gram
        grid = fit_grid(weight, spec) if o.clip == "none" else clipped_grid(weight, spec, gram.diagonal())
        gram = damped(gram, o.damping)
        codes = feed_back(weight, grid, gram, act_order=o.act_order)
        for _ in range(o.refine):
            grid = refit_scales(weight, grid, codes, gram)
            codes = descend(weight, grid, codes, gram)
        return grid, grid.values(codes)


METHOD = Gptq
