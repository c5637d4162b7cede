"""Quantiles of magnitudes that stream past: a histogram over logarithmic bins, so that memory does not grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import DataError

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

_BINS_PER_OCTAVE = 256
_LEAST, _MOST = -48, 48
"""Exponents of 2: smaller magnitudes share the first bin, larger ones the last."""


class Magnitudes:
    """Counts magnitudes by size; two in one bin differ by at most 0.27 %."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._counts = torch.zeros((_MOST - _LEAST) * _BINS_PER_OCTAVE + 1, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """See values of any shape; their signs do not count, and zeros lie in the first bin."""
        exponents = values.detach().abs().float().flatten().clamp(2.0**_LEAST, 2.0**_MOST).log2()
        places = ((exponents - _LEAST) * _BINS_PER_OCTAVE).ceil().long()
        self._counts += torch.bincount(places.cpu(), minlength=len(self._counts)).to(self._counts)

    def quantile(self, share: float) -> float:
        """Return the smallest bin's end below which at least a share in [0, 1) of all magnitudes lies; 0 for share 0.

        Raises:
            DataError: nothing has been seen.
        """
        if share <= 0:
            return 0.0
        below = self._counts.cumsum(0)
        if below[-1] <= 0:
            raise DataError("calibration.data: not one token to calibrate on")
        place = int(torch.searchsorted(below, share * below[-1]))
        return float(2.0 ** (_LEAST + place / _BINS_PER_OCTAVE))
