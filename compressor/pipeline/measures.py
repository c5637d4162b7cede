"""What a recipe asks to be measured, held against what its model and its data give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compressor.data.kinds import Batches, EvalData, LabelData, PairData, SentenceData, TextData
from compressor.data.reading import DataRequest, find_data
from compressor.data.tables import read_sentences
from compressor.errors import DataError, Problem
from compressor.measure.evaluation import supported_metrics
from compressor.model.folder import ModelFolder
from compressor.recipe import BOUNDS, METRIC_OF, Recipe

_NOTHING = Batches(tuple, 0)
_TEXT: EvalData = TextData(np.zeros((0, 0), np.int64))
_PAIRS: EvalData = PairData([], [], np.zeros(0), _NOTHING, _NOTHING)
_SENTENCES: EvalData = SentenceData(_NOTHING, 0)
_LABELLED: EvalData = LabelData(_NOTHING, np.zeros(0, np.int64))
_KINDS = {
    TextData: "text",
    PairData: "sentence pairs with scores",
    SentenceData: "sentences without labels",
    LabelData: "labelled samples",
}
_RICHEST = {
    "text-generation": _TEXT,
    "feature-extraction": _PAIRS,
    "text-classification": _LABELLED,
    "image-classification": _LABELLED,
}
"""The data that give most metrics for each task."""
_PHASES = {"text-generation": ("prefill", "decode")}
"""Phases that are timed, where they are not one `forward` pass."""


def unmeasurable(recipe: Recipe, source: ModelFolder, request: DataRequest | None) -> Iterator[Problem]:
    """Yield the metrics and bounds of a recipe that no run of it will give.

    Data that is not there is taken for the kind that gives most.

    Args:
        recipe: the recipe.
        source: its model.
        request: for its evaluation data, if it names any.

    Raises:
        DataError: the evaluation data is there and cannot be used.
    """
    metrics: tuple[str, ...] = ()
    what = source.task
    if recipe.evaluation is not None and request is not None:
        data = _kind_of(request, source)
        metrics, what = supported_metrics(source.task, data), f"{source.task} on {_KINDS[type(data)]}"
        if not metrics:
            needed = _KINDS[type(_RICHEST[source.task])]
            message = f"holds {_KINDS[type(data)]}, and {source.task} is measured on {needed}"
            yield recipe.problem(("evaluation", "data"), message)
            return
        for index, metric in enumerate(recipe.evaluation.metrics):
            if metric not in metrics:
                message = f"{metric} is not measured for {what}; allowed: {', '.join(metrics)}"
                yield recipe.problem(("evaluation", "metrics", index), message)
    allowed = [name for name in BOUNDS if _given(name, source.task, metrics)]
    for name in recipe.verify:
        # Without evaluation data the recipe itself is wrong, which is said of it elsewhere.
        if name not in allowed and (recipe.evaluation is not None or name not in METRIC_OF):
            yield recipe.problem(("verify", name), f"is not measured for {what}; allowed: {', '.join(allowed)}")


def _kind_of(request: DataRequest, source: ModelFolder) -> EvalData:
    """Return empty data of the kind that is there; only sentences come in several."""
    richest = _RICHEST[source.task]
    if source.task not in ("feature-extraction", "text-classification"):
        return richest
    try:
        path = find_data(request)
    except DataError:
        return richest
    if path.suffix not in (".csv", ".tsv"):
        return _SENTENCES
    table = read_sentences(path, request.key)
    if any(len(texts) == 2 for texts in table.texts[:1]):
        return _PAIRS
    return _LABELLED if table.numbers and source.task == "text-classification" else _SENTENCES


def _given(name: str, task: str, metrics: tuple[str, ...]) -> bool:
    """Tell whether a bound of that name is on something that is measured."""
    if name in METRIC_OF:
        return METRIC_OF[name] in metrics
    phase = name.removeprefix("speedup_").removeprefix("latency_").removesuffix("_ms")
    return phase == name or phase in _PHASES.get(task, ("forward",))
