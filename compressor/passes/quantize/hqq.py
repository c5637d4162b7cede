"""HQQ: grids fitted to the weights alone, so that few large errors are allowed for many small ones.

Half-quadratic quantization (Badri and Shaji 2023, https://dropbox.github.io/hqq_blog/) takes errors to be sparse and
minimises Σ|w − ŵ|^p with p < 1, by turns:

    e ← shrink(w − ŵ),  shrink(x) = sign(x)·max(|x| − |x|^(p−1)/β, 0)       what is taken for an outlier's error
    z ← mean over the group of  q − (w − e)/s                                 the zero point that fits the rest

with β growing from turn to turn. Zero points are integer codes here, as in the packed format, so z is rounded; the
scale takes over its part: s ← ⟨q − z, w − e⟩ / ⟨q − z, q − z⟩. A group keeps the grid of its turn of least Σ|w − ŵ|^p.
No calibration data is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compressor._lazy import lazy
from compressor.passes.base import Options
from compressor.passes.numerics.rounding import chosen, group_sums, spread
from compressor.passes.quantize._weights.weight_only import WeightOnly, WeightOnlyOptions

if TYPE_CHECKING:
    import torch

    from compressor.passes.numerics.moments import InputStats
    from compressor.storage.grids import Grid, GridSpec
else:
    torch = lazy("torch")


class HqqOptions(WeightOnlyOptions):
    """Options of `hqq`."""

    norm: float = Field(0.7, gt=0, le=2, description="The p of the error Σ|w − ŵ|^p that is minimised.")
    iterations: int = Field(20, ge=0, le=1000, description="Turns; a group keeps its best one.")
    beta: float = Field(10.0, gt=0, description="The β of the first turn; errors are counted in steps of the grid.")
    growth: float = Field(1.01, ge=1, le=2, description="By what the sharpness grows from turn to turn.")


class Hqq(WeightOnly):
    """See the module."""

    name: str = "hqq"
    summary: ClassVar[str] = "Fit grids to the weights alone by half-quadratic splitting; no calibration data."
    Options: ClassVar[type[Options]] = HqqOptions
    observes: ClassVar[bool] = False

    def quantize(self, weight: torch.Tensor, spec: GridSpec, stats: InputStats | None) -> tuple[Grid, torch.Tensor]:
        """Round a weight [outputs, inputs]."""
        grid = half_quadratic(weight, spec, self.options)
        return grid, grid.rounded(weight)


def half_quadratic(weight: torch.Tensor, spec: GridSpec, options: HqqOptions) -> Grid:
    """Return the grid of a weight [outputs, inputs] that the turns above end with."""
    from compressor.storage.grids import fit_grid

    def error(grid: Grid) -> torch.Tensor:
        return group_sums((weight - grid.rounded(weight)).abs() ** options.norm, spec)

    grid = best = fit_grid(weight, spec)
    least, beta = error(grid), options.beta
    for _ in range(options.iterations):
        grid = _turn(weight, grid, options.norm, beta)
        beta *= options.growth
        now = error(grid)
        best, least = chosen(now < least, grid, best), torch.minimum(now, least)
    return best


def _turn(weight: torch.Tensor, grid: Grid, norm: float, beta: float) -> Grid:
    """Return the grid after one turn; errors are counted in steps of the grid, so that beta fits every group."""
    from compressor.storage.grids import Grid

    spec, inputs = grid.spec, weight.shape[1]
    codes = grid.codes(weight)
    steps = codes.float() - grid.zero(inputs)
    scaled = weight / spread(grid.scale, spec, inputs)
    left = scaled - steps
    size = left.abs()
    aimed = scaled - left.sign() * (size - size ** (norm - 1) / beta).clamp(min=0)
    zero_point = grid.zero_point
    if zero_point is not None:
        counts = group_sums(torch.ones_like(weight[:1]), spec)
        mean = group_sums(codes.float() - aimed, spec) / counts
        zero_point = torch.round(mean).clamp(0, (1 << spec.bits) - 1).to(torch.uint8)
        steps = codes.float() - spread(zero_point.float(), spec, inputs)
    square, product = group_sums(steps * steps, spec), group_sums(steps * aimed, spec)
    factor = torch.where((square > 0) & (product > 0), product / square, 1.0)
    return Grid(spec, grid.scale * factor, zero_point)


METHOD = Hqq
