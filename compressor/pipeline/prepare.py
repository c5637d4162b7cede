"""Everything that can be found wrong before work begins: model, data, passes, each with its shapes after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.data.doubts import doubts
from compressor.data.kinds import EvalData
from compressor.data.questions import load_answers, load_samples
from compressor.data.reading import DataRequest
from compressor.errors import DataError, ModelError, Problem, RecipeError, UsageError
from compressor.machine.processor import TARGETS, target_for
from compressor.model.blueprint import Blueprint
from compressor.model.cost import default_length
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.base import Pass, Target
from compressor.pipeline.covered import check_covered
from compressor.pipeline.measures import unkept, unmeasurable
from compressor.recipe import AUTO, PART, Recipe, disagreements

NO_QUESTIONS = "is for a LLaVA model that is taken whole, which is asked questions about images; remove it"


@dataclass(frozen=True)
class Prepared:
    """A recipe bound to a model.

    Attributes:
        recipe: the recipe.
        model_id: what the user calls the model.
        source: the model.
        passes: instances of the recipe's methods, in order.
        blueprints: what the model is before the first pass and after each.
        target: what the artifact is for.
        calibration: request for calibration data, None when the recipe has none.
        evaluation: request for evaluation data, None when the recipe has none.
        doubts: what the user should know before the figures are believed.
        image_token: of a language model whose data are questions about images, the token that stands for an image.
        prompts: tokens of a prompt with an image, before the image encoder's passes and after them; None for a model
            that reads no image features.
    """

    recipe: Recipe
    model_id: str
    source: ModelFolder
    passes: tuple[Pass, ...]
    blueprints: tuple[Blueprint, ...]
    target: Target
    calibration: DataRequest | None
    evaluation: DataRequest | None
    doubts: tuple[str, ...] = ()
    image_token: int | None = None
    prompts: tuple[int, int] | None = None

    @property
    def task(self) -> str:
        """What the model is for."""
        return self.source.task

    @property
    def method_names(self) -> tuple[str, ...]:
        """Names of the methods, in order."""
        return tuple(method.name for method in self.passes)

    @property
    def length(self) -> int:
        """Tokens per sample of the model as it came, for FLOPs and timing."""
        if self.prompts is not None:
            return self.prompts[0]
        request = self.evaluation or self.calibration
        return request.length if request is not None else default_length(self.source, None)

    @property
    def length_after(self) -> int:
        """Tokens of the same sample after all passes: an image may have fewer features then."""
        return self.prompts[1] if self.prompts is not None else self.length

    @property
    def uses_calibration(self) -> bool:
        """Whether a pass looks at calibration data: it must, or it may and the recipe has some."""
        wanted = ("must", "takes") if self.calibration is not None else ("must",)
        return any(method.needs.calibration in wanted for method in self.passes)

    def load_calibration(self) -> EvalData:
        """Read the calibration data.

        Raises:
            DataError: it cannot be used.
        """
        assert self.calibration is not None, "asked for only where passes use it"
        if self.image_token is not None:
            return load_answers(self.calibration, self.source.path, None, self.image_token)
        return load_samples(self.calibration, self.source.task, self.source.path)

    def load_evaluation(self) -> EvalData | None:
        """Read the evaluation data, if the recipe names any.

        Raises:
            DataError: it cannot be used.
        """
        if self.evaluation is None:
            return None
        return load_samples(self.evaluation, self.source.task, self.source.path)


def prepare(recipe: Recipe, model: str | None) -> Prepared:
    """Open the model, plan every pass, and see that what is to be measured can be; reads config.json and no weights.

    Of data, what there is for the evaluation of encoders and classifiers is opened, to know of what kind it is.

    Raises:
        UsageError: no model is named.
        ModelError: the model is missing, damaged or not covered, or its files do not fit together.
        DataError: the evaluation data is there and cannot be used, samples are longer than the model's positions, or
            the image processor does not fit the model.
        RecipeError: with all that the recipe asks for and cannot get, alone or of this model.
    """
    name = model or recipe.model.id
    if not name:
        raise UsageError("no model: give -m MODEL or set model.id in the recipe", hint="For a first try: -m demo")
    source = open_model(
        located_model(name, recipe),
        task=recipe.model.task,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        dtype=recipe.model.dtype,
        part=recipe.model.part,
    )
    data = recipe.calibration is not None or recipe.evaluation is not None
    trusted = recipe.model.trust_remote_code
    check_covered(source, recipe.export.format, data=data, trust_remote_code=trusted)
    known = methods()
    passes = tuple(known[entry.name](entry.options) for entry in recipe.passes)
    problems = [*disagreements(recipe, passes), *_of_several(recipe)]
    target = Target(recipe.export.format, recipe.export.graph, TARGETS[target_for(recipe.export.target)])
    models, found = _planned(recipe, source, passes, target)
    problems += found
    section = recipe.calibration
    calibration = request_of(section, "calibration", recipe, source) if section is not None else None
    evaluation = request_of(recipe.evaluation, "evaluation", recipe, source) if recipe.evaluation is not None else None
    problems += unmeasurable(recipe, source, evaluation)
    problems += unkept(recipe, source, models[-1].blueprint) if not found else []
    problems += _unsweepable(recipe, source, target)
    if problems:
        raise RecipeError(problems, source=recipe.source)
    blueprints = tuple(model.blueprint for model in models)
    prepared = Prepared(recipe, name, source, passes, blueprints, target, calibration, evaluation)
    return replace(prepared, doubts=tuple(doubts(recipe, name, calibrated=prepared.uses_calibration)))


def _unsweepable(recipe: Recipe, source: ModelFolder, target: Target) -> Iterator[Problem]:
    """Yield which values of a recipe's sweep do not fit the model."""
    if (sweep := recipe.sweep) is None:
        return
    for value, variant in recipe.variants:
        passes = tuple(methods()[entry.name](entry.options) for entry in variant.passes)
        for problem in [*disagreements(variant, passes), *_planned(variant, source, passes, target)[1]]:
            yield recipe.problem(("sweep", sweep.name), f"{value}: {problem.message}")


def _of_several(recipe: Recipe) -> Iterator[Problem]:
    """Yield what a recipe says that means something for a model of several parts alone, or for another one of them."""
    part = recipe.model.part
    for index, entry in enumerate(recipe.passes):
        if entry.part not in (AUTO, part):
            message = f"{entry.part}; the model that is compressed has no such part; leave it out"
            yield recipe.problem(("passes", index, entry.name, PART), message)
    if recipe.model.prompt is not None:
        yield recipe.problem(("model", "prompt"), NO_QUESTIONS)
    for purpose, section in (("calibration", recipe.calibration), ("evaluation", recipe.evaluation)):
        # A recipe for one part of several, made of one for all, has its data under both keys.
        if section is not None and section.prompts not in (None, section.data):
            message = "is for a model of several parts, taken whole; put the texts of a text tower under data"
            yield recipe.problem((purpose, "prompts"), message)


def _planned(
    recipe: Recipe, source: ModelFolder, passes: Sequence[Pass], target: Target
) -> tuple[list[ModelFolder], list[Problem]]:
    """Return descriptions of the model before the first pass and after each, and what of the passes does not fit it.

    A pass that cannot be planned is left out of what follows.
    """
    models, problems = [source], []
    for index, method in enumerate(passes):
        try:
            models.append(after_pass(method, models[-1], target, quantized=bool(source.grids)))
        except (UsageError, ModelError) as error:
            message = f"{error.message}. {error.hint}" if error.hint else error.message
            problems.append(recipe.problem(("passes", index, method.name), message))
    return models, problems


def after_pass(method: Pass, model: ModelFolder, target: Target, *, quantized: bool) -> ModelFolder:
    """Return the description of `model` after a pass; `quantized` tells whether it was before the first one.

    Raises:
        UsageError: it was, or the pass quantizes nothing of it.
        ModelError: the pass does not fit it.
    """
    if quantized:
        raise UsageError(
            "the model is quantized already, and any change would take its weights off their grids",
            hint="Give the model that it was made from.",
        )
    planned = model.with_blueprint(method.plan(model, target))
    if method.family == "quantize" and method.needs.dtype is None and not planned.grids:
        raise UsageError("exclude: nothing is left to quantize", hint="Exclude less, or remove the pass.")
    return planned


def located_model(name: str, recipe: Recipe) -> str:
    """Return where a model is: a relative model folder is looked for in the working folder, then beside the recipe."""
    if recipe.folder is None or Path(name).exists():
        return name
    beside = recipe.folder / name
    return str(beside) if beside.is_dir() else name


def request_of(section: Any, purpose: Any, recipe: Recipe, source: ModelFolder) -> DataRequest:
    """Return the request for the data of a section, `calibration` or `evaluation`, as the model takes them.

    Raises:
        DataError: samples are longer than the model's positions.
    """
    stated = section.length if "length" in section.model_fields_set else None
    return DataRequest(
        data=section.data,
        bases=(*((recipe.folder,) if recipe.folder is not None else ()), Path.cwd()),
        samples=section.samples,
        length=sample_length(source, stated, f"{purpose}.length"),
        seed=recipe.calibration.seed if recipe.calibration is not None else 0,
        purpose=purpose,
        field="prompts" if section.prompts == section.data else "data",
        trust_remote_code=recipe.model.trust_remote_code,
    )


def sample_length(source: ModelFolder, stated: int | None, key: str) -> int:
    """Return the tokens per sample: as stated, else 512, or fewer where the model has fewer positions.

    Images have none, so any length will do.

    Args:
        source: the model.
        stated: what the user wants.
        key: what the user calls it.

    Raises:
        DataError: the model has fewer positions than that.
    """
    if stated is None:
        return default_length(source, None)
    limit = default_length(source, stated)
    if limit < stated and source.family.inputs == "tokens":
        raise DataError(
            f"{key}: {stated} tokens; the model has {limit} positions", hint=f"Set {key} to at most {limit}."
        )
    return stated


def planned_model(prepared: Prepared, after: int) -> ModelFolder:
    """Return the description of the model after `after` passes; there is no folder of it yet."""
    return prepared.source.with_blueprint(prepared.blueprints[after])
