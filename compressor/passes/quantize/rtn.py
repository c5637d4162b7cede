"""RTN: every weight goes to the nearest value of its group's grid. No calibration data is looked at.

The grid covers the range of the group (`compressor.storage.grids.fit_grid`): the baseline that other methods must beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.passes.base import Options
from compressor.passes.quantize._weights.weight_only import WeightOnly, WeightOnlyOptions

if TYPE_CHECKING:
    import torch

    from compressor.passes.numerics.moments import InputStats
    from compressor.storage.grids import Grid, GridSpec


class RtnOptions(WeightOnlyOptions):
    """Options of `rtn`."""


class Rtn(WeightOnly):
    """See the module."""

    name: str = "rtn"
    summary: ClassVar[str] = "Round weights to the nearest value of a 2-, 4- or 8-bit grid; the baseline."
    Options: ClassVar[type[Options]] = RtnOptions
    observes: ClassVar[bool] = False

    def quantize(self, weight: torch.Tensor, spec: GridSpec, stats: InputStats | None) -> tuple[Grid, torch.Tensor]:
        """Round a weight [outputs, inputs]."""
        from compressor.storage.grids import fit_grid

        grid = fit_grid(weight, spec)
        return grid, grid.rounded(weight)


METHOD = Rtn
