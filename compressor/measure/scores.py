"""What is kept of every sample that is scored, and the quality that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from compressor.data.kinds import Ids
from compressor.measure.runner import Array
from compressor.measure.statistics import F64, Ratio, Statistic, interval, resampled, value_of
from compressor.recipe import BOUNDS

Interval = tuple[float, float]

_CHUNK = 1 << 17
"""Elements of logits that are scored in float64 at a time: small enough for the processor's cache."""
_COLUMNS = ("nll", "hits", "entropy", "count", "nll_dense", "hits_dense", "kl", "agree")


@dataclass(frozen=True)
class Quality:
    """Metrics of both models from one pass over the data.

    Attributes:
        ours: metric name -> value, NaN where an output was not finite.
        dense: the same for the dense model, without the metrics that compare with it; empty when there was none.
        finite: whether all outputs of ours were finite.
        varies: whether our outputs differ between samples: a model that ignores its input does not vary.
        entropy: mean entropy of our predictions over the largest possible, in [0, 1]; None for what is no prediction.
        samples: windows, pairs, sentences or labelled inputs seen.
        ours_statistics: of each metric of ours that has a distribution over samples.
        dense_statistics: the same for the dense model.
    """

    ours: dict[str, float]
    dense: dict[str, float]
    finite: bool
    varies: bool
    entropy: float | None
    samples: int
    ours_statistics: Mapping[str, Statistic] = field(default_factory=dict)
    dense_statistics: Mapping[str, Statistic] = field(default_factory=dict)

    def intervals(self) -> tuple[dict[str, Interval], dict[str, Interval]]:
        """Return 95 % confidence intervals of ours and of dense, by bootstrap over samples.

        Beside the metrics of ours stand its changes from dense, under their names in `compressor.recipe.BOUNDS` (such
        as `perplexity_increase`); both models are resampled alike, so their common noise cancels. Left out are metrics
        of fewer than two samples, those that were not finite, and the worst cosine: a minimum has no such interval.
        """
        if not self.finite or self.samples < 2:
            return {}, {}
        sides = {f"{side}.{name}": statistic for side, statistics in (("ours", self.ours_statistics),
                 ("dense", self.dense_statistics)) for name, statistic in statistics.items()}  # fmt: skip
        drawn = resampled(sides)
        ours = {name: drawn[f"ours.{name}"] for name in self.ours_statistics}
        dense = {name: drawn[f"dense.{name}"] for name in self.dense_statistics}
        changes = {
            name: np.array([bound.value(*pair) for pair in zip(ours[metric], dense[metric], strict=True)])
            for name, bound in BOUNDS.items()
            if bound.change and (metric := bound.metric) in ours and metric in dense
        }
        return _intervals({**ours, **changes}), _intervals(dense)


def _intervals(drawn: Mapping[str, F64]) -> dict[str, Interval]:
    found = {name: interval(values) for name, values in drawn.items()}
    return {name: bounds for name, bounds in found.items() if bounds is not None}


def quality_of(
    ours: Mapping[str, Statistic],
    dense: Mapping[str, Statistic],
    *,
    finite: bool,
    varies: bool,
    entropy: float | None,
    samples: int,
) -> Quality:
    """Return the quality that follows from statistics; all of ours are NaN once an output was not finite."""
    values = {name: value_of(statistic) if finite else math.nan for name, statistic in ours.items()}
    others = {name: value_of(statistic) for name, statistic in dense.items()}
    return Quality(values, others, finite, varies, entropy, samples, ours, dense)


class Scores:
    """Predictions of one or two models among the same outcomes, summed up sample by sample."""

    def __init__(self) -> None:
        """Begin without samples."""
        self._rows: list[F64] = []
        self._classes = 1
        self.finite = True

    def add(self, logits: Array, targets: Ids, dense: Array | None, *, together: bool) -> None:
        """Add predictions [N, V] with the right answers [N]: one sample `together`, or N of them.

        They are scored a few rows at a time, to bound copies in float64.
        """
        self._classes = logits.shape[-1]
        rows = max(1, _CHUNK // self._classes)
        parts = []
        for i in range(0, len(targets), rows):
            part = slice(i, i + rows)
            with np.errstate(invalid="ignore"):
                parts.append(self._scored(logits[part], targets[part], dense[part] if dense is not None else None))
        table = np.concatenate(parts)
        self._rows.append(table.sum(axis=0, keepdims=True) if together else table)

    def _scored(self, logits: Array, targets: Ids, dense: Array | None) -> F64:
        """Return the figures of every prediction [N, columns]."""
        rows = np.arange(len(targets))
        ours, probabilities = distribution(logits)
        best = logits.argmax(axis=-1)
        self.finite &= bool(np.isfinite(logits).all())
        table = np.zeros((len(targets), len(_COLUMNS)))
        table[:, 0] = -ours[rows, targets]
        table[:, 1] = best == targets
        table[:, 2] = -np.vecdot(probabilities, ours)
        table[:, 3] = 1.0
        if dense is not None:
            theirs, probabilities = distribution(dense)
            best_dense = dense.argmax(axis=-1)
            table[:, 4] = -theirs[rows, targets]
            table[:, 5] = best_dense == targets
            theirs -= ours
            table[:, 6] = np.vecdot(probabilities, theirs)
            table[:, 7] = best_dense == best
        return table

    def ratio(self, column: str, *, exponential: bool = False) -> Ratio:
        """Return a column's mean per prediction as a statistic of the samples."""
        table = np.concatenate(self._rows)
        return Ratio(table[:, _COLUMNS.index(column)], table[:, _COLUMNS.index("count")], exponential)

    @property
    def entropy(self) -> float:
        """Mean entropy of our predictions over ln(classes)."""
        return value_of(self.ratio("entropy")) / math.log(max(self._classes, 2))


def log_softmax(logits: Array) -> F64:
    """Return log-probabilities [..., V] in float64; rows with NaN stay NaN."""
    return distribution(logits)[0]


def distribution(logits: Array) -> tuple[F64, F64]:
    """Return log-probabilities and probabilities [..., V] in float64, from one exponential."""
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        x -= x.max(axis=-1, keepdims=True)
        weights = np.exp(x)
        total = weights.sum(axis=-1, keepdims=True)
        x -= np.log(total)
        weights /= total
    return x, weights
