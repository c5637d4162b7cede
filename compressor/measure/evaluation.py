"""Quality of a model on data, alone and beside the dense model: the same code for PyTorch and ONNX Runtime.

Both models see each batch together and only sums are kept, so memory does not grow with the data. A NaN or an infinity
in an output makes every metric that depends on it NaN: a bound compared with NaN fails, it never passes by accident.

| metric | meaning | data |
|---|---|---|
| `perplexity` | exp of the mean negative log-likelihood of the T-1 predicted tokens of every window | text |
| `kl` | mean KL(dense || ours) per token (text) or sample (labels), nats | text, labels |
| `top1` | share of equal most likely tokens or classes, ours and dense | text, labels |
| `cosine`, `cosine_min` | similarity of the embeddings of ours and dense, mean and minimum | pairs, sentences, text |
| `spearman` | rank correlation of pair similarity and gold score | pairs |
| `accuracy` | share of right classes | labels |
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.architectures.tasks import TASKS
from compressor.data.kinds import EvalData, Ids, Inputs, LabelData, PairData, TextData
from compressor.data.reading import model_batches
from compressor.errors import DataError, ModelError, UsageError, did_you_mean
from compressor.measure.runner import Array, Runner
from compressor.recipe import METRICS

F64 = NDArray[np.float64]

LOGIT_BUDGET = 8 << 20
"""Elements of one batch of logits [B, T, V]: larger batches only cost memory."""
TEXT_WINDOWS = 8
"""Windows of text of one batch at most."""
_CHUNK = 1 << 17
"""Elements of logits that are scored in float64 at a time: small enough for the processor's cache."""


@dataclass(frozen=True)
class Quality:
    """Metrics of both models from one pass over the data.

    Attributes:
        ours: metric name -> value, NaN where an output was not finite.
        dense: the same for the dense model, without the metrics that compare with it; empty when there was none.
        finite: whether all outputs of ours were finite.
        varies: whether our outputs differ between samples: a model that ignores its input does not vary.
        entropy: mean entropy of our predictions over ln(classes), in [0, 1]; None for embeddings.
        samples: windows, pairs, sentences or labelled inputs seen.
    """

    ours: dict[str, float]
    dense: dict[str, float]
    finite: bool
    varies: bool
    entropy: float | None
    samples: int


def supported_metrics(task: str, data: EvalData) -> tuple[str, ...]:
    """Return the metrics that a task and a kind of data allow, in report order."""
    return TASKS[task].metrics.get(data.kind, ())


def evaluate(
    runner: Runner, data: EvalData, metrics: Sequence[str], reference: Runner | None = None
) -> dict[str, float]:
    """Return the asked metrics of `runner` (all that the data allow when `metrics` is empty).

    Args:
        runner: the model to judge.
        data: evaluation data; see the table above for what fits which metric.
        metrics: names out of `compressor.recipe.METRICS`; `cosine` brings `cosine_min` with it.
        reference: the dense model; needed for metrics that compare with it, which are left out of the default
            without it.

    Raises:
        UsageError: an unknown metric, or one that this task, data or missing reference does not allow.
        DataError: the data are empty.
    """
    asked = check_metrics(metrics, runner.task, data, reference is not None)
    found = measure(runner, data, reference).ours
    return {name: found[name] for name in asked}


def check_metrics(metrics: Sequence[str], task: str, data: EvalData, has_reference: bool) -> list[str]:
    """Return the metrics to report, in order, each one possible.

    Raises:
        UsageError: an unknown or impossible metric.
    """
    possible = [m for m in supported_metrics(task, data) if has_reference or not METRICS[m].relative]
    for name in metrics:
        if name not in METRICS:
            raise UsageError(f"unknown metric '{name}'{did_you_mean(name, METRICS)}; there are {', '.join(METRICS)}")
        if name not in possible:
            why = (
                "it needs the dense model to compare with"
                if METRICS[name].relative and not has_reference
                else (f"{type(data).__name__} with a model for {task} gives {', '.join(possible) or 'none'}")
            )
            raise UsageError(f"metric '{name}' cannot be measured here: {why}")
    wanted = {shown for name in metrics or possible for shown in (name, *METRICS[name].brings)}
    return [name for name in possible if name in wanted]


def measure(runner: Runner, data: EvalData, reference: Runner | None = None) -> Quality:
    """Measure everything that the data allow, for both models, batch by batch.

    Raises:
        DataError: the data are empty, or do not fit the model's task.
        UsageError: the two models serve different tasks.
    """
    if len(data) == 0:
        raise DataError(f"evaluation data {data.source or '(unnamed)'} is empty")
    if reference is not None and reference.task != runner.task:
        raise UsageError(
            f"{runner.folder} is for {runner.task}, {reference.folder} for {reference.task}: not comparable"
        )
    if runner.task == "text-generation" and isinstance(data, TextData):
        return _measure_text(runner, data, reference)
    if runner.task in ("image-classification", "text-classification") and isinstance(data, LabelData):
        return _measure_labels(runner, data, reference)
    if runner.task == "feature-extraction":
        return _measure_embeddings(runner, data, reference)
    raise DataError(f"{type(data).__name__} does not fit a model for {runner.task} ({runner.folder})")


@dataclass
class _Scores:
    """Sums over predictions [N, V] of one or two models."""

    nll: float = 0.0
    hits: int = 0
    nll_dense: float = 0.0
    hits_dense: int = 0
    kl: float = 0.0
    agree: int = 0
    entropy: float = 0.0
    count: int = 0
    classes: int = 1
    finite: bool = True

    def add(self, logits: Array, targets: Ids, dense: Array | None) -> None:
        """Add predictions [N, V] and the right answers [N], a few rows at a time to bound float64 copies."""
        self.classes = logits.shape[-1]
        rows = max(1, _CHUNK // self.classes)
        for i in range(0, len(targets), rows):
            part = slice(i, i + rows)
            with np.errstate(invalid="ignore"):
                self._add(logits[part], targets[part], dense[part] if dense is not None else None)

    def _add(self, logits: Array, targets: Ids, dense: Array | None) -> None:
        rows = np.arange(len(targets))
        ours, probabilities = _distribution(logits)
        best = logits.argmax(axis=-1)
        self.finite &= bool(np.isfinite(logits).all())
        self.nll -= float(ours[rows, targets].sum())
        self.hits += int((best == targets).sum())
        self.entropy -= float(np.vdot(probabilities, ours))
        self.count += len(targets)
        if dense is not None:
            theirs, probabilities = _distribution(dense)
            best_dense = dense.argmax(axis=-1)
            self.nll_dense -= float(theirs[rows, targets].sum())
            self.hits_dense += int((best_dense == targets).sum())
            theirs -= ours
            self.kl += float(np.vdot(probabilities, theirs))
            self.agree += int((best_dense == best).sum())

    def quality(self, metrics: dict[str, float], dense: dict[str, float], varies: bool, samples: int) -> Quality:
        """Bind the metrics; all of ours are NaN once a logit was not finite (argmax of NaN is meaningless)."""
        if not self.finite:
            metrics = dict.fromkeys(metrics, math.nan)
        entropy = self.entropy / self.count / math.log(max(self.classes, 2))
        return Quality(metrics, dense, self.finite, varies, entropy, samples)


def _measure_text(runner: Runner, data: TextData, reference: Runner | None) -> Quality:
    sums = _Scores()
    size, varied, first = 1, False, None
    start = 0
    while start < len(data):
        window = data.windows[start : start + size]
        logits = runner.forward({"input_ids": window})
        dense = reference.forward({"input_ids": window}) if reference is not None else None
        for row, ids in enumerate(window):
            first = logits[row, -1] if first is None else first
            varied |= not np.array_equal(first, logits[row, -1]) or not np.array_equal(first, logits[row, 0])
            theirs = dense[row, :-1] if dense is not None else None
            sums.add(logits[row, :-1], ids[1:], theirs)
        start += len(window)
        size = max(1, min(TEXT_WINDOWS, LOGIT_BUDGET // (window.shape[1] * logits.shape[-1])))
    ours = {"perplexity": _exp(sums.nll / sums.count)}
    dense_metrics = {}
    if reference is not None:
        ours |= {"kl": sums.kl / sums.count, "top1": sums.agree / sums.count}
        dense_metrics = {"perplexity": _exp(sums.nll_dense / sums.count)}
    return sums.quality(ours, dense_metrics, varied, len(data))


def _measure_labels(runner: Runner, data: LabelData, reference: Runner | None) -> Quality:
    sums = _Scores()
    done, varied, first = 0, False, None
    for batch in data.batches:
        logits = runner.forward(batch)
        first = logits[0] if first is None else first
        varied |= bool((logits != first).any())
        labels = data.labels[done : done + len(logits)]
        if len(labels) != len(logits):
            raise DataError(f"{data.source}: more inputs than its {len(data.labels)} labels")
        if labels.min() < 0 or labels.max() >= logits.shape[-1]:
            raise DataError(
                f"{data.source}: labels reach {int(labels.max())}, the model knows classes 0 to {logits.shape[-1] - 1}"
            )
        sums.add(logits, labels, reference.forward(batch) if reference is not None else None)
        done += len(logits)
    if done != len(data.labels):
        raise DataError(f"{data.source}: {len(data.labels)} labels but {done} inputs")
    ours = {"accuracy": sums.hits / sums.count}
    dense_metrics = {}
    if reference is not None:
        ours |= {"top1": sums.agree / sums.count, "kl": sums.kl / sums.count}
        dense_metrics = {"accuracy": sums.hits_dense / sums.count}
    return sums.quality(ours, dense_metrics, varied or done == 1, done)


def _measure_embeddings(runner: Runner, data: EvalData, reference: Runner | None) -> Quality:
    sides = [data.first_batches, data.second_batches] if isinstance(data, PairData) else [model_batches(data)]
    pooling = pooling_of(runner.folder, reference.folder if reference is not None else None)
    ours = [np.concatenate([embed(runner, b, pooling) for b in side]) for side in sides]
    theirs = (
        [np.concatenate([embed(reference, b, pooling) for b in side]) for side in sides]
        if reference is not None
        else []
    )
    everything = np.concatenate(ours)
    finite = bool(np.isfinite(everything).all())
    metrics: dict[str, float] = {}
    dense_metrics: dict[str, float] = {}
    if theirs:
        cosine = np.concatenate([(a * b).sum(axis=1) for a, b in zip(ours, theirs, strict=True)])
        metrics |= {"cosine": float(cosine.mean()), "cosine_min": float(cosine.min())}
    if isinstance(data, PairData):
        if not len(ours[0]) == len(ours[1]) == len(data.scores):
            raise DataError(f"{data.source}: {len(ours[0])} and {len(ours[1])} sentences for {len(data.scores)} scores")
        metrics["spearman"] = spearman((ours[0] * ours[1]).sum(axis=1), data.scores)
        if theirs:
            dense_metrics["spearman"] = spearman((theirs[0] * theirs[1]).sum(axis=1), data.scores)
    varies = len(everything) == 1 or bool((np.abs(everything - everything[0]) > 1e-6).any())
    if not finite:
        metrics = dict.fromkeys(metrics, math.nan)
    return Quality(metrics, dense_metrics, finite, varies, None, len(data))


def embed(runner: Runner, inputs: Inputs, pooling: str = "mean") -> F64:
    """Return unit-length sentence embeddings [B, H] of one batch, pooled by `mean`, `cls` or `max` over real tokens."""
    hidden = runner.forward(inputs).astype(np.float64)
    mask = np.asarray(inputs.get("attention_mask", np.ones(hidden.shape[:2])), dtype=np.float64)[:, :, None]
    if pooling == "cls":
        pooled = hidden[:, 0]
    elif pooling == "max":
        pooled = np.where(mask > 0, hidden, -np.inf).max(axis=1)
    else:
        pooled = np.where(mask > 0, hidden, 0.0).sum(axis=1) / np.maximum(mask.sum(axis=1), 1.0)
    norm = np.linalg.norm(pooled, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        # An all-zero embedding has no direction: NaN, so that no bound accepts it.
        return np.asarray(pooled / np.where(norm > 0, norm, np.nan), dtype=np.float64)


def pooling_of(*folders: Path | None) -> str:
    """Return how the first folder with sentence-transformers' `1_Pooling/config.json` pools; `mean` without one.

    Raises:
        ModelError: such a file is not what that library writes.
    """
    for folder in folders:
        path = folder / "1_Pooling" / "config.json" if folder is not None else None
        if path is not None and path.is_file():
            try:
                config = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise ModelError(f"1_Pooling/config.json cannot be read: {error}") from error
            if isinstance(mode := config.get("pooling_mode"), str):
                return mode
            return next((m for m, key in _POOLING_KEYS.items() if config.get(key)), "mean")
    return "mean"


_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
}


def log_softmax(logits: Array) -> F64:
    """Return log-probabilities [..., V] in float64; rows with NaN stay NaN."""
    return _distribution(logits)[0]


def _distribution(logits: Array) -> tuple[F64, F64]:
    """Return log-probabilities and probabilities [..., V] in float64, from one exponential."""
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        x -= x.max(axis=-1, keepdims=True)
        weights = np.exp(x)
        total = weights.sum(axis=-1, keepdims=True)
        x -= np.log(total)
        weights /= total
    return x, weights


def ranks(values: NDArray[np.float64]) -> F64:
    """Return 1-based ranks [N]; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray(((last - counts + 1 + last) / 2.0)[inverse], dtype=np.float64)


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation, Pearson's on ranks with ties averaged; NaN if a side is constant or NaN."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    x, y = ranks(np.asarray(a, np.float64)), ranks(np.asarray(b, np.float64))
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
