"""Statistics over samples, and how sure they are: ratios of sums, correlations, confidence intervals by bootstrap.

A statistic is written as a function of *counts* [R, N]: how often each of N samples occurs in each of R resamples. All
ones give its value; resamples drawn with replacement give its distribution (percentile bootstrap: Efron, Tibshirani,
An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

F64: TypeAlias = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
"""Share of resamples that lie within an interval."""
_UNDEFINED = 0.05
"""Share of resamples that may have no value, such as the correlation of a constant; above, there is no interval."""
_CELLS = 1 << 22
"""Numbers of the matrix of counts that lie in memory at a time."""


class Statistic(Protocol):
    """A figure that follows from samples."""

    @property
    def samples(self) -> int:
        """Number of samples, N."""

    def values(self, counts: F64) -> F64:
        """Return the figure [R] for every row of counts [R, N]; NaN where it is not defined."""


@dataclass(frozen=True)
class Ratio:
    """The sum of `top` over the sum of `bottom`: a mean, or a share of hits.

    Attributes:
        top: numerator of each sample [N].
        bottom: denominator of each sample [N].
        exponential: whether the figure is e to the power of the ratio, as perplexity is.
    """

    top: F64
    bottom: F64
    exponential: bool = False

    @property
    def samples(self) -> int:
        """Number of samples, N."""
        return len(self.top)

    def values(self, counts: F64) -> F64:
        """Return the figure [R] for every row of counts [R, N]; NaN where the denominator is zero."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            bottom = counts @ self.bottom
            ratio = np.where(bottom != 0, (counts @ self.top) / bottom, math.nan)
            return np.asarray(np.exp(ratio) if self.exponential else ratio, dtype=np.float64)


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of two figures of each sample, or Spearman's: Pearson's of their ranks, ties averaged.

    Attributes:
        a: one figure of each sample [N].
        b: the other one [N].
        ranked: whether ranks are correlated instead of the figures themselves.
    """

    a: F64
    b: F64
    ranked: bool

    @property
    def samples(self) -> int:
        """Number of samples, N."""
        return len(self.a)

    def values(self, counts: F64) -> F64:
        """Return the correlation [R] for every row of counts [R, N]; NaN where a side is constant or not finite."""
        if not (np.isfinite(self.a).all() and np.isfinite(self.b).all()):
            return np.full(len(counts), math.nan)
        x, y = (_centred(_ranks(v, counts) if self.ranked else v[None], counts) for v in (self.a, self.b))
        scale = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(scale > 0, (counts * x * y).sum(axis=1) / scale, math.nan), dtype=np.float64)


@dataclass(frozen=True)
class Deviation:
    """The root mean square difference of two outputs over the spread (standard deviation) of the second one.

    Attributes:
        ours: one output of each sample [N].
        dense: what it is compared with [N].
    """

    ours: F64
    dense: F64

    @property
    def samples(self) -> int:
        """Number of samples, N."""
        return len(self.ours)

    def values(self, counts: F64) -> F64:
        """Return the figure [R] for every row of counts [R, N]; NaN where the second output is constant."""
        spread = (counts * _centred(self.dense[None], counts) ** 2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            square = np.where(spread > 0, counts @ np.square(self.ours - self.dense) / spread, math.nan)
            return np.asarray(np.sqrt(square), dtype=np.float64)


def value_of(statistic: Statistic) -> float:
    """Return a statistic of the samples as they are."""
    return float(statistic.values(np.ones((1, statistic.samples)))[0])


def resampled(statistics: Mapping[str, Statistic], seed: int = 0) -> dict[str, F64]:
    """Return each statistic [RESAMPLES] of the same resamples, so that differences of two are paired.

    Args:
        statistics: by name, all of the same samples.
        seed: of the resamples.
    """
    if not statistics:
        return {}
    (samples,) = {statistic.samples for statistic in statistics.values()}
    parts: dict[str, list[F64]] = {name: [] for name in statistics}
    for counts in _resamples(samples, np.random.default_rng(seed)):
        for name, statistic in statistics.items():
            parts[name].append(statistic.values(counts))
    return {name: np.concatenate(values) for name, values in parts.items()}


def interval(values: F64) -> tuple[float, float] | None:
    """Return the bounds within which the share `LEVEL` of resampled values lies; None where too few are defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < (1 - _UNDEFINED) * len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resamples(samples: int, rng: np.random.Generator) -> Iterator[F64]:
    """Yield counts [R, samples] of draws with replacement, `RESAMPLES` rows in all."""
    step = max(1, _CELLS // samples)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = rng.integers(0, samples, (rows, samples)) + np.arange(rows)[:, None] * samples
        counts = np.bincount(drawn.ravel(), minlength=rows * samples)
        yield counts.reshape(rows, samples).astype(np.float64)


def ranks(values: F64) -> F64:
    """Return 1-based ranks [N]; equal values share the mean of their ranks."""
    return np.asarray(_ranks(values, np.ones((1, len(values))))[0], dtype=np.float64)


def _ranks(values: F64, counts: F64) -> F64:
    """Return the rank [R, N] that each value has in each resample; equal values share the mean of their ranks."""
    _, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.flatnonzero(np.diff(inverse[order], prepend=-1))
    equal = np.add.reduceat(counts[:, order], starts, axis=1)
    return np.asarray((equal.cumsum(axis=1) - (equal - 1) / 2)[:, inverse], dtype=np.float64)


def _centred(values: F64, counts: F64) -> F64:
    mean = (counts * values).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    return np.asarray(values - mean, dtype=np.float64)


def spearman(a: F64, b: F64) -> float:
    """Return Spearman's rank correlation of two figures [N]; NaN if a side is constant or not finite."""
    return value_of(Correlation(np.asarray(a, np.float64), np.asarray(b, np.float64), ranked=True))
