"""A recipe bound to a model of several parts: to each of them a recipe of its own, and what joins them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.architectures import Joined, Tower, read_by
from compressor.architectures.tasks import TASKS
from compressor.data.questions import load_answers
from compressor.data.reading import DataRequest, is_there
from compressor.errors import ModelError, Problem, RecipeError, UsageError
from compressor.machine.processor import TARGETS, target_for
from compressor.model.blueprint import SECTION
from compressor.model.config import config_for
from compressor.model.folder import ModelFolder, open_model
from compressor.model.image_places import image_features, prompt_lengths
from compressor.model.parts import image_token_of, joined_by, parts_of
from compressor.model.source import resolve_path
from compressor.passes import methods
from compressor.passes.base import Pass, Target
from compressor.pipeline.measures import not_measured, unkept
from compressor.pipeline.prepare import (
    NO_QUESTIONS,
    Prepared,
    after_pass,
    located_model,
    planned_model,
    prepare,
    request_of,
)
from compressor.pipeline.spans import SPAN, placed
from compressor.recipe import AUTO, PART, EvaluationSection, PassEntry, Recipe, disagreements

_IMAGES = "vision"
"""The part that reads `data`; the others read `prompts`, or the questions about the images."""


@dataclass(frozen=True)
class Whole:
    """A recipe bound to all parts of a model.

    Attributes:
        recipe: the recipe.
        model_id: what the user calls the model.
        path: its folder.
        joined: what the parts make together.
        parts: by name, the recipe bound to each.
        target: what the artifact is for.
        calibration: request for the images, or the questions about images, to calibrate on; None when the recipe has
            none.
        evaluation: request for the images to be classified, or the questions to be answered; None when the recipe has
            none.
        prompts: request for the texts that stand for the images' labels; None where questions are answered.
        doubts: what the user should know before the figures are believed.
    """

    recipe: Recipe
    model_id: str
    path: Path
    joined: Joined
    parts: Mapping[str, Prepared]
    target: Target
    calibration: DataRequest | None
    evaluation: DataRequest | None
    prompts: DataRequest | None
    doubts: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """What the model is for."""
        return self.joined.task

    @property
    def uses_calibration(self) -> bool:
        """Whether a pass looks at calibration data."""
        return any(part.uses_calibration for part in self.parts.values())


def prepare_any(recipe: Recipe, model: str | None) -> Prepared | Whole:
    """Bind a recipe to its model, whole where that is one of several parts and the recipe names none of them.

    Raises:
        CompressorError: what `prepare` raises.
    """
    name = model or recipe.model.id
    if not name or recipe.model.part is not None:
        return prepare(recipe, model)
    folder = resolve_path(located_model(name, recipe), revision=recipe.model.revision)
    return _prepare_whole(recipe, name, folder) if parts_of(folder) else prepare(recipe, model)


def _prepare_whole(recipe: Recipe, name: str, folder: Path) -> Whole:
    joined, towers = joined_by(folder), parts_of(folder)
    sources = {part: open_model(folder, part=part) for part in towers}
    target = Target(recipe.export.format, recipe.export.graph, TARGETS[target_for(recipe.export.target)])
    entries, doubts = _concerned(recipe, sources, target)
    problems = list(_problems(recipe, joined, towers, entries))
    if problems:  # what the parts would say of them is said already
        raise RecipeError(problems, source=recipe.source)
    parts: dict[str, Prepared] = {}
    for part in towers:
        try:
            parts[part] = prepare(_recipe_for(recipe, part, entries[part], joined), name)
        except RecipeError as error:
            problems += error.problems
    problems += _not_stock(recipe, parts)
    problems += _unsweepable(recipe, name, folder)
    if _IMAGES in parts:  # of the others' tokens, recipes say nothing
        problems += unkept(recipe, sources[_IMAGES], parts[_IMAGES].blueprints[-1])
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)), source=recipe.source)
    images, calibration, prompts = sources[_IMAGES], None, None
    evaluation = request_of(recipe.evaluation, "evaluation", recipe, images) if recipe.evaluation is not None else None
    if recipe.calibration is not None:
        calibration = request_of(recipe.calibration, "calibration", recipe, images)
    if joined.image_token is not None:
        asks = recipe.model.prompt or ""
        calibration = replace(calibration, prompt=asks) if calibration is not None else None
        evaluation = replace(evaluation, prompt=asks) if evaluation is not None else None
        starts = _check_questions((calibration, evaluation), folder)
        parts = _placed(recipe, name, joined, parts, starts)
        lengths, token = _prompts(parts), image_token_of(folder)
        parts = {part: _asking(prepared, asks, token, lengths) for part, prepared in parts.items()}
    elif evaluation is not None:
        (prompts,) = (prepared.evaluation for part, prepared in parts.items() if part != _IMAGES)
    said = [f"{part}: {doubt}" for part, prepared in parts.items() for doubt in prepared.doubts]
    doubts = (*doubts, *dict.fromkeys(said))
    return Whole(recipe, name, folder, joined, parts, target, calibration, evaluation, prompts, doubts)


def _check_questions(requests: Sequence[DataRequest | None], folder: Path) -> list[int]:
    """See that questions can be put to the model, before work begins; data that is not there is told elsewhere.

    Returns:
        The places in prompts at which images begin.

    Raises:
        DataError: they cannot.
    """
    token, found = image_token_of(folder), set()
    for request in requests:
        if request is not None and token is not None and is_there(request):
            asked = load_answers(request, folder, None, token).questions
            found |= {one.prompt.index(token) for one in asked}
    return sorted(found)


def _placed(
    recipe: Recipe, name: str, joined: Joined, parts: Mapping[str, Prepared], starts: Sequence[int]
) -> dict[str, Prepared]:
    """Return the parts, of which the passes on image tokens in prompts know where these stand and how many there are.

    Args:
        recipe: of the whole.
        name: of the model.
        joined: what the parts make together.
        parts: as they were prepared.
        starts: places in the prompts of the data at which images begin; none where there is no data.

    Raises:
        RecipeError: the recipe says otherwise, or the prompts differ in it.
    """
    vision, found = parts[_IMAGES], dict(parts)
    count = image_features(planned_model(vision, len(vision.passes)))
    for part, prepared in parts.items():
        entries = placed(recipe, prepared.recipe.passes, count, starts)
        if entries != prepared.recipe.passes:
            found[part] = prepare(_recipe_for(recipe, part, entries, joined), name)
    return found


def _unsweepable(recipe: Recipe, name: str, folder: Path) -> Iterator[Problem]:
    """Yield which values of a recipe's sweep do not fit the model."""
    if (sweep := recipe.sweep) is None:
        return
    for value, variant in recipe.variants:
        try:
            _prepare_whole(variant, name, folder)
        except RecipeError as error:
            for problem in error.problems:
                yield recipe.problem(("sweep", sweep.name), f"{value}: {problem.message}")


def _prompts(parts: Mapping[str, Prepared]) -> tuple[int, int]:
    """Return how many tokens a prompt with an image has, before the image encoder's passes and after them."""
    vision = parts[_IMAGES]
    (language,) = (prepared for part, prepared in parts.items() if part != _IMAGES)
    return prompt_lengths(vision.source, planned_model(vision, len(vision.passes)), language.source)


def _asking(prepared: Prepared, prompt: str, image_token: int | None, lengths: tuple[int, int]) -> Prepared:
    """Return a recipe for one part whose data are questions about images, put to the model as `prompt` says."""
    requests = (prepared.calibration, prepared.evaluation)
    calibration, evaluation = (replace(r, prompt=prompt) if r is not None else None for r in requests)
    prepared = replace(prepared, calibration=calibration, evaluation=evaluation)
    reads = prepared.source.family.inputs == "tokens"
    return replace(prepared, image_token=image_token, prompts=lengths) if reads else prepared


def _concerned(
    recipe: Recipe, sources: Mapping[str, ModelFolder], target: Target
) -> tuple[dict[str, tuple[PassEntry, ...]], tuple[str, ...]]:
    """Return the passes of each part, and what was left out of one because it cannot be done there.

    A pass for `auto` that no part can do stays with all of them, whose own preparation says what is wrong.
    """
    known = methods()
    models = dict(sources)
    kept: dict[str, list[PassEntry]] = {part: [] for part in sources}
    doubts = []
    for entry in recipe.passes:
        method, refusals = known[entry.name](entry.options), {}
        for part, model in models.items():
            if entry.part not in (AUTO, part) or (entry.part == AUTO and not _offered(method, entry, sources[part])):
                continue
            try:
                models[part] = after_pass(method, model, target, quantized=bool(sources[part].grids))
            except (UsageError, ModelError) as error:
                refusals[part] = error.message
            if part not in refusals or entry.part == part:
                kept[part].append(entry)
        done = [part for part in kept if kept[part] and kept[part][-1] is entry]
        for part, reason in refusals.items():
            if not done:
                kept[part].append(entry)
            elif entry.part == AUTO:
                doubts.append(f"{entry.name} is not applied to the part {part}: {reason}")
    return {part: tuple(items) for part, items in kept.items()}, tuple(doubts)


def _offered(method: Pass, entry: PassEntry, source: ModelFolder) -> bool:
    """Tell whether a pass for `auto` is for a part: of tokens, only those of images are many and alike."""
    reads = "tokens" if hasattr(entry.options, SPAN) else "pixels"
    return method.family != "tokens" or source.family.inputs == reads


def _problems(
    recipe: Recipe, joined: Joined, towers: Mapping[str, Tower], entries: Mapping[str, Sequence[PassEntry]]
) -> Iterator[Problem]:
    """Yield what a recipe asks for and cannot get of the whole model, whatever of its parts."""
    if recipe.model.task not in (AUTO, joined.task):
        message = f"{recipe.model.task} is not what the whole model is for; allowed: auto, {joined.task}"
        yield recipe.problem(("model", "task"), message)
    if recipe.export.format == "ort":
        message = "ort is not written for a model of several parts; allowed: onnx, safetensors, or set model.part"
        yield recipe.problem(("export", "format"), message)
    yield from _of_answers(recipe, entries) if joined.image_token is not None else _of_prompts(recipe, towers, entries)
    (offered,) = TASKS[joined.task].metrics.values()
    yield from disagreements(recipe, ())
    found = (offered, ("cosine",)) if recipe.evaluation is not None else ((), ())
    yield from not_measured(recipe, joined.task, found[0], joined.task, found[1])


def _of_prompts(
    recipe: Recipe, towers: Mapping[str, Tower], entries: Mapping[str, Sequence[PassEntry]]
) -> Iterator[Problem]:
    """Yield what a recipe for two towers, by whose embeddings images are classified, lacks."""
    known = methods()
    for part, items in entries.items():
        for entry in items:
            must = known[entry.name](entry.options).needs.calibration == "must"
            lacks = recipe.calibration is not None and recipe.calibration.prompts is None
            if must and lacks and read_by(towers[part]) == "tokens":
                message = f"the part {part} needs texts to calibrate on; add calibration.prompts, or {PART}: {_IMAGES}"
                yield recipe.problem(("passes", entry.place, entry.name), message)
    if recipe.evaluation is not None and recipe.evaluation.prompts is None:
        message = "images are classified by prompts; add evaluation.prompts, a table of label and prompt"
        yield recipe.problem(("evaluation", "data"), message)
    if recipe.model.prompt is not None:
        yield recipe.problem(("model", "prompt"), NO_QUESTIONS)


def _of_answers(recipe: Recipe, entries: Mapping[str, Sequence[PassEntry]]) -> Iterator[Problem]:
    """Yield what a recipe for a language model that reads image features in its prompt cannot have."""
    for purpose, section in (("calibration", recipe.calibration), ("evaluation", recipe.evaluation)):
        if section is not None and section.prompts is not None:
            message = "is for models that compare images with texts; questions about images are data"
            yield recipe.problem((purpose, "prompts"), message)
    known = methods()
    for part, items in entries.items():
        for entry in items:
            if part != _IMAGES and known[entry.name](entry.options).needs.turns_stream:
                message = (
                    f"rotates the stream of the part {part}, into which the image encoder's features would no longer"
                    f" fit; choose another method{', or rotate: false' if entry.name == 'rsq' else ''}"
                )
                yield recipe.problem(("passes", entry.place, entry.name), message)


def _not_stock(recipe: Recipe, parts: Mapping[str, Prepared]) -> Iterator[Problem]:
    """Yield the parts that stock transformers could not load as parts of the whole model, where that is written."""
    for part, prepared in parts.items() if recipe.export.format == "safetensors" else ():
        blueprint, source = prepared.blueprints[-1], prepared.source
        # Inside the whole model it is a stock class that runs, also for a part that is a class of ours by itself.
        inside = replace(source, family=replace(source.family, own=False))
        if blueprint.grids or SECTION in config_for(inside, blueprint):
            what = "is quantized" if blueprint.grids else "has layers of different widths, or computes something else"
            message = f"safetensors: the part {part} {what} after the passes, which stock transformers cannot load in a"
            yield recipe.problem(("export", "format"), f"{message} model of several; use onnx, or set model.part")


def _recipe_for(recipe: Recipe, part: str, entries: tuple[PassEntry, ...], joined: Joined) -> Recipe:
    """Return the recipe for one part: its passes and its data, and no bounds, which are on the whole.

    What it says of kept tokens is for the images.
    """
    images = part == _IMAGES
    return replace(
        recipe,
        export=recipe.export if images else recipe.export.model_copy(update={"kept_mask": False}),
        report=recipe.report if images else recipe.report.model_copy(update={"images": 0}),
        model=recipe.model.model_copy(update={"part": part, "task": AUTO, "prompt": None}),
        passes=entries,
        calibration=_section_for(recipe.calibration, part, joined),
        evaluation=_section_for(recipe.evaluation, part, joined),
        verify={},
        sweep=None,
    )


def _section_for(section: Any, part: str, joined: Joined) -> Any:
    """Return a section of data as one part reads it; None where it has nothing for that part."""
    images = part == _IMAGES
    if section is not None and joined.image_token is not None:  # questions are for all parts, and judged on all at once
        if isinstance(section, EvaluationSection):
            return section.model_copy(update={"metrics": []}) if images else None
        return section
    if section is None or (not images and section.prompts is None):
        return None
    update: dict[str, Any] = {"prompts": None} if images else {"data": section.prompts}
    if isinstance(section, EvaluationSection):
        update["metrics"] = []
        update |= {} if images else {"samples": None}
    return section.model_copy(update=update)
