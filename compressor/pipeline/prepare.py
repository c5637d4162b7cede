"""Everything that can be found wrong before work begins: model, data, passes, each with its shapes after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.accounting import default_length
from compressor.architectures import Shapes
from compressor.calibration import DataRequest, load_data
from compressor.data import EvalData
from compressor.errors import DataError, ModelError, Problem, RecipeError, UsageError
from compressor.loading import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.base import Pass
from compressor.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """A recipe bound to a model.

    Attributes:
        recipe: the recipe.
        model_id: what the user calls the model.
        source: the model.
        passes: instances of the recipe's methods, in order.
        shapes: the shapes before the first pass and after each.
        calibration: request for calibration data, None when the recipe has none.
        evaluation: request for evaluation data, None when the recipe has none.
    """

    recipe: Recipe
    model_id: str
    source: ModelFolder
    passes: tuple[Pass, ...]
    shapes: tuple[Shapes, ...]
    calibration: DataRequest | None
    evaluation: DataRequest | None

    @property
    def method_names(self) -> tuple[str, ...]:
        """Names of the methods, in order."""
        return tuple(method.name for method in self.passes)

    @property
    def length(self) -> int:
        """Tokens per sample for FLOPs and timing."""
        request = self.evaluation or self.calibration
        return request.length if request is not None else default_length(self.source, None)

    def load_calibration(self) -> EvalData:
        """Read the calibration data.

        Raises:
            RecipeError: passes need it and the recipe names none.
            DataError: it cannot be used.
        """
        if self.calibration is None:
            problem = Problem(
                "calibration", f"{', '.join(self.method_names)} need calibration data; add calibration.data"
            )
            raise RecipeError([problem], source=self.recipe.source)
        return load_data(self.calibration, self.source.task, self.source.path)

    def load_evaluation(self) -> EvalData | None:
        """Read the evaluation data, if the recipe names any.

        Raises:
            DataError: it cannot be used.
        """
        if self.evaluation is None:
            return None
        return load_data(self.evaluation, self.source.task, self.source.path)


def prepare(recipe: Recipe, model: str | None) -> Prepared:
    """Open the model and plan every pass; reads config.json, no weights and no data.

    Raises:
        UsageError: no model is named.
        ModelError: the model is missing or not covered, or a pass does not fit it.
        RecipeError: options ask for what this model cannot give.
    """
    name = model or recipe.model.id
    if not name:
        raise UsageError("no model: give -m MODEL or set model.id in the recipe", hint="For a first try: -m demo")
    source = open_model(
        _located(name, recipe),
        task=recipe.model.task,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        dtype=recipe.model.dtype,
    )
    known: Mapping[str, type[Pass]] = methods()
    passes = tuple(known[entry.name](entry.options) for entry in recipe.passes)
    shapes = [source.shapes]
    for index, method in enumerate(passes):
        try:
            shapes.append(method.plan(source.with_shapes(shapes[-1])))
        except (UsageError, ModelError) as error:
            problem = Problem(f"passes[{index}].{method.name}", error.message)
            raise RecipeError([problem], source=recipe.source) from error
    section = recipe.calibration
    calibration = _request(section, "calibration", recipe, source) if section is not None else None
    evaluation = _request(recipe.evaluation, "evaluation", recipe, source) if recipe.evaluation is not None else None
    return Prepared(recipe, name, source, passes, tuple(shapes), calibration, evaluation)


def _located(name: str, recipe: Recipe) -> str:
    """A relative model folder is looked for in the working folder, then beside the recipe."""
    if recipe.folder is None or Path(name).exists():
        return name
    beside = recipe.folder / name
    return str(beside) if beside.is_dir() else name


def _request(section: Any, purpose: Any, recipe: Recipe, source: ModelFolder) -> DataRequest:
    limit = default_length(source, None if source.task == "image-classification" else 1 << 30)
    if "length" in section.model_fields_set and section.length > limit:
        raise DataError(
            f"{purpose}.length: {section.length} tokens; the model has {limit} positions",
            hint=f"Set {purpose}.length to at most {limit}.",
        )
    return DataRequest(
        data=section.data,
        bases=(*((recipe.folder,) if recipe.folder is not None else ()), Path.cwd()),
        samples=section.samples,
        length=min(section.length, limit),
        seed=recipe.calibration.seed if recipe.calibration is not None else 0,
        purpose=purpose,
    )


def planned_model(prepared: Prepared, after: int) -> ModelFolder:
    """Return the description of the model after `after` passes; there is no folder of it yet."""
    return replace(prepared.source, shapes=prepared.shapes[after])
