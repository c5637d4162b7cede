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
from compressor.grids import GridSpec
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
        grids: the grids of quantized weights before the first pass and after each, by module name.
        calibration: request for calibration data, None when the recipe has none.
        evaluation: request for evaluation data, None when the recipe has none.
    """

    recipe: Recipe
    model_id: str
    source: ModelFolder
    passes: tuple[Pass, ...]
    shapes: tuple[Shapes, ...]
    grids: tuple[Mapping[str, GridSpec], ...]
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

    @property
    def uses_calibration(self) -> bool:
        """Whether a pass looks at calibration data: it must, or it may and the recipe has some."""
        given = self.calibration is not None
        return any(m.calibrated or (given and getattr(m, "takes_calibration", False)) for m in self.passes)

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
    models = [source]
    for index, method in enumerate(passes):
        if hasattr(method, "export_format"):
            method.export_format = recipe.export.format
        try:
            _check_export(method, recipe, quantized=bool(models[-1].grids))
            models.append(_planned(method, models[-1]))
        except (UsageError, ModelError) as error:
            problem = Problem(f"passes[{index}].{method.name}", error.message)
            raise RecipeError([problem], source=recipe.source) from error
    shapes, grids = tuple(m.shapes for m in models), tuple(m.grids for m in models)
    section = recipe.calibration
    calibration = _request(section, "calibration", recipe, source) if section is not None else None
    evaluation = _request(recipe.evaluation, "evaluation", recipe, source) if recipe.evaluation is not None else None
    return Prepared(recipe, name, source, passes, shapes, grids, calibration, evaluation)


def _check_export(method: Pass, recipe: Recipe, *, quantized: bool) -> None:
    """Refuse a pass that sets the artifact's dtype where the export cannot have it.

    Raises:
        UsageError: the format, the dtype that the recipe states, or weights on grids are in the way.
    """
    dtype = getattr(method, "artifact_dtype", None)
    if dtype is None:
        return
    export, formats = recipe.export, getattr(method, "formats", ())
    if export.format not in formats:
        raise UsageError(
            f"{dtype} cannot be exported as {export.format}: ONNX Runtime's CPU kernels do not compute in it; "
            f"set export.format to {' or '.join(formats)}, or use fp16"
        )
    if export.dtype not in ("auto", dtype):
        raise UsageError(f"the pass makes the artifact {dtype}, export.dtype says {export.dtype}; leave it auto")
    if quantized:
        raise UsageError(f"the weights lie on integer grids, whose scales are float32: {dtype} has nothing to add")


def _planned(method: Pass, model: ModelFolder) -> ModelFolder:
    """Return the description of `model` after a pass.

    Raises:
        UsageError: the model is quantized already.
        ModelError: the pass does not fit it.
    """
    if model.grids:
        raise UsageError(
            "the weights are quantized already, and any change would take them off their grids; put it first"
        )
    return model.with_shapes(method.plan(model)).with_grids(method.plan_grids(model))


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
    return replace(prepared.source, shapes=prepared.shapes[after], grids=prepared.grids[after])
