"""What a recipe asks to be measured, held against what its model and its data give."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.architectures.tasks import TASKS
from compressor.data.reading import DataRequest, find_data
from compressor.data.tables import read_sentences
from compressor.errors import DataError, Problem
from compressor.model.blueprint import Blueprint
from compressor.model.folder import ModelFolder
from compressor.recipe import BOUNDS, GATES, Bounded, Gate, Recipe

_KINDS = {
    "text": "text",
    "pairs": "sentence pairs with scores",
    "sentences": "sentences without labels",
    "labels": "labelled samples",
    "values": "samples with scores",
    "label sets": "samples with sets of labels",
    "images": "images",
}
"""Kind of evaluation data -> what it is called in a message."""


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
    offered = TASKS[source.task].metrics
    if recipe.evaluation is not None and request is not None:
        kind = _kind_of(request, source)
        metrics, what = offered.get(kind, ()), f"{source.task} on {_KINDS[kind]}"
        if not metrics:
            message = f"holds {_KINDS[kind]}, and {source.task} is measured on {_KINDS[_richest(source)]}"
            yield recipe.problem(("evaluation", "data"), message)
            return
    yield from not_measured(recipe, source.task, metrics, what)


def not_measured(
    recipe: Recipe, task: str, metrics: tuple[str, ...], what: str, of_parts: tuple[str, ...] = ()
) -> Iterator[Problem]:
    """Yield the metrics and bounds of a recipe that are not among what is measured.

    Args:
        recipe: the recipe.
        task: of its model.
        metrics: what its evaluation data give.
        what: what is measured, for a message.
        of_parts: metrics of each part of the model, which gates are on.
    """
    for index, metric in enumerate(recipe.evaluation.metrics if recipe.evaluation is not None else ()):
        if metric not in metrics:
            message = f"{metric} is not measured for {what}; allowed: {', '.join(metrics)}"
            yield recipe.problem(("evaluation", "metrics", index), message)
    values: dict[str, Bounded | Gate] = {**BOUNDS, **GATES}
    allowed = [name for name, value in values.items()
               if _given(value, task, (*metrics, *of_parts) if isinstance(value, Gate) else metrics)]  # fmt: skip
    for name in recipe.verify:
        # Without evaluation data the recipe itself is wrong, which is said of it elsewhere.
        if name not in allowed and (recipe.evaluation is not None or not values[name].metric):
            yield recipe.problem(("verify", name), f"is not measured for {what}; allowed: {', '.join(allowed)}")


def unkept(recipe: Recipe, source: ModelFolder, last: Blueprint) -> Iterator[Problem]:
    """Yield what a recipe asks of kept image tokens where the model `source` is, after all passes, one that keeps all.

    `last` is its blueprint then.
    """
    images = source.family.inputs == "pixels"
    if last.reductions and images:
        return
    of_texts = "is for images; the tokens of this model are those of texts. Remove it"
    asked = {("export", "kept_mask"): recipe.export.kept_mask, ("report", "images"): recipe.report.images}
    for path, wanted in asked.items():
        if wanted:
            message = "tells which image tokens are kept, and no pass lets any go; add a token pass, or remove it"
            yield recipe.problem(path, message if images else of_texts)
    if "kept_tokens" in recipe.verify:
        message = "is measured where a pass lets image tokens go, and none does"
        yield recipe.problem(("verify", "kept_tokens"), message if images else of_texts)


def _kind_of(request: DataRequest, source: ModelFolder) -> str:
    """Return the kind of data that is there; only sentences come in several."""
    head = source.head
    if source.task == "feature-extraction" and source.family.inputs == "pixels":
        return "images"
    if source.task not in ("feature-extraction", "text-classification"):
        return _richest(source)
    try:
        path = find_data(request)
    except DataError:
        return _richest(source)
    if path.suffix not in (".csv", ".tsv"):
        return "sentences"
    table = read_sentences(path, request.key, head)
    if head is not None:
        return head.kind if table.numbers or table.sets else "sentences"
    return "pairs" if any(len(texts) == 2 for texts in table.texts[:1]) else "sentences"


def _richest(source: ModelFolder) -> str:
    """Return the kind of data that allows most metrics."""
    if source.task == "feature-extraction" and source.family.inputs == "pixels":
        return "images"
    return source.head.kind if source.head is not None else next(iter(TASKS[source.task].metrics))


def _given(value: Bounded | Gate, task: str, metrics: tuple[str, ...]) -> bool:
    """Tell whether a value that a bound names is measured."""
    if value.metric or isinstance(value, Gate):
        return value.metric is None or value.metric in metrics
    return value.phase is None or value.phase in TASKS[task].phases
