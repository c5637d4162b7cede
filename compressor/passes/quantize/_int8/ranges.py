"""Which values an input takes: per channel and batch, and as a histogram from which the range of 8-bit codes follows.

    x ≈ (code − zero point) · scale,   code ∈ 0 … 255,   scale = (high − low) / 255,   low ≤ 0 ≤ high

One scale serves the whole tensor. `range_of` chooses low and high from a histogram: values beyond are cut off.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from compressor._lazy import lazy
from compressor.errors import DataError
from compressor.passes.surgery.observe import unpadded

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = lazy("torch")

Method = Literal["minmax", "percentile", "entropy", "mse"]
LEVELS = 255
BINS = 2048
PERCENTILE = 99.99
_SHRINKS = 100
_DIGITS = 8
_SIGMAS = 3.0


class ChannelRanges:
    """Least and greatest value of every channel in every batch, and the mean squares of unpadded rows.

    Attributes:
        low: per batch [width], at most 0.
        high: per batch [width], at least 0.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.low: list[torch.Tensor] = []
        self.high: list[torch.Tensor] = []
        self._squares: torch.Tensor | None = None
        self._count = 0

    def add(self, inputs: torch.Tensor, mask: torch.Tensor | None, *, padding: bool) -> None:
        """See a batch [batch, tokens, width]; `mask` [batch, tokens] is False at padding.

        Where `padding` counts, it does so for the ranges: a runtime that looks for the range of a tensor sees it too.
        """
        seen = unpadded(inputs, mask)
        bounding = unpadded(inputs, None) if padding else seen
        self.low.append(bounding.amin(0).clamp(max=0.0))
        self.high.append(bounding.amax(0).clamp(min=0.0))
        squares = seen.double().square().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares
        self._count += len(seen)

    @property
    def mean_squares(self) -> torch.Tensor:
        """E[x²] per channel over unpadded rows, [width] float64.

        Raises:
            DataError: there was no token.
        """
        if self._squares is None or not self._count:
            raise DataError("calibration.data: not one token to calibrate on")
        return self._squares / self._count

    def tensor_range(self, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the range of x · factors of every batch: least and greatest value, [batches] each."""
        low = (torch.stack(self.low) * factors).amin(1)
        return low, (torch.stack(self.high) * factors).amax(1)

    @classmethod
    def behind_norm(cls, norm: nn.Module, offset: float) -> ChannelRanges:
        """Return what the weights of a norm say of its output: channel j lies around bias_j, with deviation |weight_j|.

        Args:
            norm: with `weight` [width] and perhaps `bias`.
            offset: what the norm adds to its stored weight (Gemma: 1).
        """
        parameters = {name: parameter.data for name, parameter in norm.named_parameters()}
        weight = parameters["weight"] + offset
        centre = parameters.get("bias", torch.zeros_like(weight))
        ranges = cls()
        ranges.low.append((centre - _SIGMAS * weight.abs()).clamp(max=0.0))
        ranges.high.append((centre + _SIGMAS * weight.abs()).clamp(min=0.0))
        ranges._squares, ranges._count = weight.double().square() + centre.double().square(), 1
        return ranges


def _rounded_up(value: float) -> float:
    """Return the least number of `_DIGITS` binary digits that is not below `value` and not negative."""
    mantissa, exponent = math.frexp(max(value, 0.0))
    return math.ldexp(math.ceil(math.ldexp(mantissa, _DIGITS)), exponent - _DIGITS)


class Histogram:
    """Counts of the values of a tensor in equal bins between known bounds."""

    def __init__(self, low: float, high: float) -> None:
        """Cover `low` … `high` and 0, a little more: the ends get few digits, so their last bits decide nothing."""
        self.low, self.high = -_rounded_up(-low), _rounded_up(high)
        if self.high == self.low:
            self.high = self.low + 1.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """See values of any shape; those beyond the bounds count for the outermost bins."""
        inside = values.float().clamp(self.low, self.high)
        self.counts += torch.histc(inside, BINS, self.low, self.high).double().cpu()

    @property
    def centres(self) -> torch.Tensor:
        """Middle of every bin, [bins] float64."""
        step = (self.high - self.low) / BINS
        return self.low + step * (torch.arange(BINS, dtype=torch.float64) + 0.5)


def range_of(histogram: Histogram, method: Method, percentile: float = PERCENTILE) -> tuple[float, float]:
    """Return the range that 8-bit codes should cover; it holds 0.

    `minmax` covers every value seen. `percentile` leaves the same share of values out at both ends. `mse` and `entropy`
    try 100 thresholds T and cover [max(low, −T), min(high, T)]: `mse` takes the least mean square of rounding and
    cutting off, `entropy` the least Kullback-Leibler divergence of the distribution over 256 codes from that seen
    (Migacz, 8-bit inference with TensorRT, GTC 2017).
    """
    low, high = histogram.low, histogram.high
    if method == "minmax":
        return low, high
    if method == "percentile":
        share = histogram.counts.cumsum(0) / histogram.counts.sum()
        tail = (100.0 - percentile) / 100.0
        centres = histogram.centres
        below = float(centres[int((share > tail).double().argmax())])
        above = float(centres[int((share >= 1.0 - tail).double().argmax())])
        return min(below, 0.0), max(above, 0.0)
    loss = _square_error if method == "mse" else _divergence
    widest = max(-low, high)
    candidates = [widest * (i + 1) / _SHRINKS for i in range(_SHRINKS)]
    ranges = [(max(low, -t), min(high, t)) for t in candidates]
    return min(ranges, key=lambda ends: (loss(histogram, *ends), ends[0] - ends[1]))


def scale_and_zero(low: float, high: float) -> tuple[float, int]:
    """Return the step of the codes (a float32 number) and the code of 0 for a range that holds 0."""
    scale = float(torch.tensor((high - low) / LEVELS, dtype=torch.float32))
    if scale <= 0.0:
        return 1.0, 0
    return scale, max(0, min(LEVELS, round(-low / scale)))


def _square_error(histogram: Histogram, low: float, high: float) -> float:
    scale, zero = scale_and_zero(low, high)
    x = histogram.centres
    rounded = ((torch.round(x / scale) + zero).clamp(0, LEVELS) - zero) * scale
    inside = (x >= low) & (x <= high)
    # Bins are wider than exact values: rounding inside the range is taken as uniform over a step.
    loss = torch.where(inside, torch.full_like(x, scale**2 / 12), (x - rounded).square())
    return float((loss * histogram.counts).sum() / histogram.counts.sum())


def _divergence(histogram: Histogram, low: float, high: float) -> float:
    scale, zero = scale_and_zero(low, high)
    x, seen = histogram.centres, histogram.counts
    codes = (torch.round(x / scale) + zero).clamp(0, LEVELS).long()
    inside = (x >= low) & (x <= high)
    # What is cut off is added to the outermost bins that are kept; the codes are made of the kept values alone.
    cut = torch.zeros_like(seen).index_add_(0, _nearest(inside), seen)
    kept = torch.where(inside, seen, 0.0)
    filled = (kept > 0).double()
    per_code = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add_(0, codes, kept)
    bins = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add_(0, codes, filled)
    spread = filled * per_code[codes] / bins[codes].clamp(min=1.0)
    p = cut / cut.sum()
    q = (spread + 1e-9 * seen.sum()) / (spread.sum() + 1e-9 * seen.sum() * len(seen))
    return float(torch.where(p > 0, p * (p.clamp(min=1e-300) / q).log(), 0.0).sum())


def _nearest(inside: torch.Tensor) -> torch.Tensor:
    """Return for every bin the nearest bin inside."""
    places = inside.nonzero().reshape(-1)
    first, last = (int(places[0]), int(places[-1])) if len(places) else (0, len(inside) - 1)
    return torch.arange(len(inside)).clamp(first, last)
