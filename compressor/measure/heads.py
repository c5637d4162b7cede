"""Quality of classification heads: one class of several, one real number, any number of labels."""

from __future__ import annotations

import math

import numpy as np

from compressor.data.kinds import Batches, LabelData, SetData, ValueData
from compressor.errors import DataError
from compressor.measure.runner import Array, Runner
from compressor.measure.scores import Quality, Scores, quality_of
from compressor.measure.statistics import F64, Correlation, Deviation, Ratio, Statistic

HeadData = LabelData | ValueData | SetData


def measure_head(runner: Runner, data: HeadData, reference: Runner | None) -> Quality:
    """Measure the outputs [N, C] of a classifier and of the dense one.

    Raises:
        DataError: the data do not fit the model's outputs.
    """
    ours, dense = _outputs(runner, reference, data.batches)
    if len(ours) != len(data):
        raise DataError(f"{data.source}: {len(data)} labels but {len(ours)} inputs")
    if isinstance(data, LabelData):
        return measure_labels(ours, dense, data)
    return _values(ours, dense, data) if isinstance(data, ValueData) else _sets(ours, dense, data)


def _outputs(runner: Runner, reference: Runner | None, batches: Batches) -> tuple[Array, Array | None]:
    """Return the outputs [N, C] of both models for all samples; each batch is made once."""
    ours, dense = [], []
    for batch in batches:
        ours.append(runner.forward(batch))
        if reference is not None:
            dense.append(reference.forward(batch))
    return np.concatenate(ours), np.concatenate(dense) if dense else None


def measure_labels(ours: Array, dense: Array | None, data: LabelData) -> Quality:
    """Measure the scores [N, C] that samples have for each class, ours and the dense model's.

    Raises:
        DataError: there is a label without a score.
    """
    classes = ours.shape[-1]
    if data.labels.min() < 0 or data.labels.max() >= classes:
        raise DataError(
            f"{data.source}: labels reach {int(data.labels.max())}, the model knows classes 0 to {classes - 1}"
        )
    scores = Scores()
    scores.add(ours, data.labels, dense, together=False)
    ours_ones: dict[str, Statistic] = {"accuracy": scores.ratio("hits")}
    dense_ones: dict[str, Statistic] = {}
    if dense is not None:
        ours_ones |= {"top1": scores.ratio("agree"), "kl": scores.ratio("kl")}
        dense_ones = {"accuracy": scores.ratio("hits_dense")}
    return quality_of(
        ours_ones, dense_ones, finite=scores.finite, varies=_varies(ours), entropy=scores.entropy, samples=len(data)
    )


def _values(ours: Array, dense: Array | None, data: ValueData) -> Quality:
    found = _column(ours, data)
    ours_ones = _correlations(found, data.values)
    dense_ones: dict[str, Statistic] = {}
    if dense is not None:
        wanted = _column(dense, data)
        ours_ones |= {"rank": Correlation(found, wanted, ranked=True), "relative_error": Deviation(found, wanted)}
        dense_ones = _correlations(wanted, data.values)
    finite = bool(np.isfinite(found).all())
    return quality_of(ours_ones, dense_ones, finite=finite, varies=_varies(ours), entropy=None, samples=len(data))


def _column(outputs: Array, data: ValueData) -> F64:
    if outputs.shape[-1] != 1:
        raise DataError(f"{data.source}: one number per sample, but the model has {outputs.shape[-1]} outputs")
    return outputs[:, 0].astype(np.float64)


def _correlations(outputs: F64, gold: F64) -> dict[str, Statistic]:
    return {"spearman": Correlation(outputs, gold, ranked=True), "pearson": Correlation(outputs, gold, ranked=False)}


def _sets(ours: Array, dense: Array | None, data: SetData) -> Quality:
    if ours.shape[-1] != data.holds.shape[-1]:
        raise DataError(f"{data.source}: {data.holds.shape[-1]} labels, but the model has {ours.shape[-1]} outputs")
    ours_ones: dict[str, Statistic] = {"f1": _f1(ours, data.holds)}
    dense_ones: dict[str, Statistic] = {}
    on, off = log_sigmoid(ours)
    labels = np.full(len(data), float(ours.shape[-1]))
    if dense is not None:
        dense_on, dense_off = log_sigmoid(dense)
        with np.errstate(invalid="ignore"):
            distance = np.exp(dense_on) * (dense_on - on) + np.exp(dense_off) * (dense_off - off)
        ours_ones["kl"] = Ratio(distance.sum(axis=1), labels)
        dense_ones["f1"] = _f1(dense, data.holds)
    with np.errstate(invalid="ignore"):
        entropy = -(np.exp(on) * on + np.exp(off) * off).mean() / math.log(2)
    finite = bool(np.isfinite(ours).all())
    return quality_of(
        ours_ones, dense_ones, finite=finite, varies=_varies(ours), entropy=float(entropy), samples=len(data)
    )


def _f1(outputs: Array, holds: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Ratio:
    """Return F1 of all labels and samples together: twice the hits over the labels predicted plus those that hold."""
    predicted = outputs > 0  # a sigmoid above 0.5
    hits = (predicted & holds).sum(axis=1)
    return Ratio(2.0 * hits, (predicted.sum(axis=1) + holds.sum(axis=1)).astype(np.float64))


def log_sigmoid(outputs: Array) -> tuple[F64, F64]:
    """Return the log-probabilities, in float64, that labels hold and that they do not."""
    x = outputs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return -np.logaddexp(0.0, -x), -np.logaddexp(0.0, x)


def _varies(outputs: Array) -> bool:
    return len(outputs) == 1 or bool((outputs != outputs[0]).any())
