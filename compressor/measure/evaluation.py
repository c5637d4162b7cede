"""Quality of a model on data, alone and beside the dense model: the same code for PyTorch and ONNX Runtime.

Both models see the same batches and only figures of each sample are kept, so memory does not grow with the vocabulary.
A NaN or an infinity in an output makes every metric that depends on it NaN: a bound compared with NaN fails, it never
passes by accident. Which data allow which metric is stated in `compressor.architectures.tasks`.

| metric | meaning | data |
|---|---|---|
| `perplexity` | exp of the mean negative log-likelihood of the T-1 predicted tokens of every window | text |
| `kl` | mean KL(dense || ours), nats per token, sample (labels) or label (label sets) | text, labels, label sets |
| `top1` | share of equal most likely tokens or classes, ours and dense | text, labels |
| `cosine`, `cosine_min` | similarity of the embeddings of ours and dense, mean and minimum | pairs, sentences, text |
| `spearman` | rank correlation of pair similarity, or of the output, with the gold score | pairs, values |
| `pearson` | linear correlation of the output with the gold score | values |
| `rank` | rank correlation of our outputs and dense's | values |
| `relative_error` | root mean square difference of our outputs and dense's over the spread of dense's | values |
| `accuracy` | share of right classes | labels |
| `f1` | F1 of all labels and samples together (micro), a label holding at a sigmoid above 0.5 | label sets |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from compressor.architectures.tasks import TASKS
from compressor.data.kinds import EvalData, Inputs, PairData, TextData
from compressor.data.reading import model_batches
from compressor.errors import DataError, UsageError, did_you_mean
from compressor.measure.heads import HeadData, measure_head
from compressor.measure.runner import Runner
from compressor.measure.scores import Quality, Scores, quality_of
from compressor.measure.statistics import F64, Correlation, Ratio, Statistic
from compressor.recipe import METRICS
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json

LOGIT_BUDGET = 8 << 20
"""Elements of one batch of logits [B, T, V]: larger batches only cost memory."""
TEXT_WINDOWS = 8
"""Windows of text of one batch at most."""


def supported_metrics(task: str, data: EvalData) -> tuple[str, ...]:
    """Return the metrics that a task and a kind of data allow, in report order."""
    return TASKS[task].metrics.get(data.kind, ())


def evaluate(runner: Runner, data: EvalData, metrics: Sequence[str], reference: Runner | None = None) -> Quality:
    """Return the quality of `runner` in the asked metrics (all that the data allow when `metrics` is empty).

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
    found = measure(runner, data, reference)
    statistics = {name: found.ours_statistics[name] for name in asked if name in found.ours_statistics}
    return replace(found, ours={name: found.ours[name] for name in asked}, ours_statistics=statistics)


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
    if TASKS[runner.task].classifies and isinstance(data, HeadData):
        return measure_head(runner, data, reference)
    if runner.task == "feature-extraction":
        return _measure_embeddings(runner, data, reference)
    raise DataError(f"{type(data).__name__} does not fit a model for {runner.task} ({runner.folder})")


def _measure_text(runner: Runner, data: TextData, reference: Runner | None) -> Quality:
    scores = Scores()
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
            scores.add(logits[row, :-1], ids[1:], theirs, together=True)
        start += len(window)
        size = max(1, min(TEXT_WINDOWS, LOGIT_BUDGET // (window.shape[1] * logits.shape[-1])))
    ours: dict[str, Statistic] = {"perplexity": scores.ratio("nll", exponential=True)}
    dense_ones: dict[str, Statistic] = {}
    if reference is not None:
        ours |= {"kl": scores.ratio("kl"), "top1": scores.ratio("agree")}
        dense_ones = {"perplexity": scores.ratio("nll_dense", exponential=True)}
    return quality_of(ours, dense_ones, finite=scores.finite, varies=varied, entropy=scores.entropy, samples=len(data))


def _measure_embeddings(runner: Runner, data: EvalData, reference: Runner | None) -> Quality:
    sides = [data.first_batches, data.second_batches] if isinstance(data, PairData) else [model_batches(data)]
    pooling = pooling_of(runner.folder, reference.folder if reference is not None else None)
    ours = [np.concatenate([embed(runner, b, pooling) for b in side]) for side in sides]
    theirs = (
        [np.concatenate([embed(reference, b, pooling) for b in side]) for side in sides]
        if reference is not None
        else []
    )
    if isinstance(data, PairData) and not len(ours[0]) == len(ours[1]) == len(data.scores):
        raise DataError(f"{data.source}: {len(ours[0])} and {len(ours[1])} sentences for {len(data.scores)} scores")
    everything = np.concatenate(ours)
    finite = bool(np.isfinite(everything).all())
    statistics: dict[str, Statistic] = {}
    dense_statistics: dict[str, Statistic] = {}
    worst: dict[str, float] = {}
    if theirs:
        cosines = [(a * b).sum(axis=1) for a, b in zip(ours, theirs, strict=True)]
        statistics["cosine"] = Ratio(np.mean(cosines, axis=0), np.ones(len(cosines[0])))
        worst = {"cosine_min": float(np.min(cosines)) if finite else math.nan}
    if isinstance(data, PairData):
        statistics["spearman"] = Correlation((ours[0] * ours[1]).sum(axis=1), data.scores, ranked=True)
        if theirs:
            similarity = (theirs[0] * theirs[1]).sum(axis=1)
            dense_statistics["spearman"] = Correlation(similarity, data.scores, ranked=True)
    varies = len(everything) == 1 or bool((np.abs(everything - everything[0]) > 1e-6).any())
    quality = quality_of(statistics, dense_statistics, finite=finite, varies=varies, entropy=None, samples=len(data))
    found = {**quality.ours, **worst}
    return replace(quality, ours={name: found[name] for name in METRICS if name in found})


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
        path = own_file(folder, _POOLING) if folder is not None else None
        if path is not None:
            config = read_json(path, name=_POOLING)
            if isinstance(mode := config.get("pooling_mode"), str):
                return mode
            return next((m for m, key in _POOLING_KEYS.items() if config.get(key)), "mean")
    return "mean"


_POOLING = "1_Pooling/config.json"
_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
}
