"""Contradictions between parts of a recipe that are each valid, as far as they show without the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from compressor.errors import Problem
from compressor.recipe.metrics import BOUNDS, GATES

if TYPE_CHECKING:
    from compressor.recipe import ExportSection, Recipe


class NeedsFacts(Protocol):
    """What must be known of a pass's needs.

    Attributes:
        calibration: `none`, `takes` or `must`.
        dtype: type of the artifact's weights that it sets; None for none.
        formats: what can be exported after it.
    """

    @property
    def calibration(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str | None: ...  # noqa: D102
    @property
    def formats(self) -> tuple[str, ...]: ...  # noqa: D102


class PassFacts(Protocol):
    """What must be known of a pass.

    Attributes:
        name: of the method.
        family: of the method.
        needs: what it needs.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def needs(self) -> NeedsFacts: ...  # noqa: D102


def disagreements(recipe: Recipe, passes: Sequence[PassFacts]) -> list[Problem]:
    """Return what cannot go together, whatever the model.

    Args:
        recipe: the recipe.
        passes: its passes, in order, made with their options.
    """
    found = []
    quantizer: PassFacts | None = None
    for index, method in enumerate(passes):
        path = ("passes", index, method.name)
        messages = [_after(quantizer, method), _dtype(method, recipe.export)]
        if method.needs.calibration == "must" and recipe.calibration is None:
            messages.append("needs calibration data, and the recipe names none; add `calibration: {data: ...}`")
        found += [recipe.problem(path, message) for message in messages if message]
        if method.family == "quantize":
            quantizer = quantizer or method
    if recipe.report.images and recipe.evaluation is None:
        message = "shows evaluation images, and the recipe names none; add `evaluation: {data: ...}`"
        found.append(recipe.problem(("report", "images"), message))
    return [*found, *_unmeasured(recipe)]


def _after(quantizer: PassFacts | None, method: PassFacts) -> str | None:
    """Say why a pass cannot follow one that quantizes."""
    if quantizer is None:
        return None
    on_grids = quantizer.needs.dtype is None
    if method.family != "quantize":
        message = "has quantized the weights, and any change would take them off their grids; put"
        return f"{quantizer.name} {message} {method.name} before it" if on_grids else None
    if on_grids and (dtype := method.needs.dtype):
        return f"the weights lie on integer grids, whose scales are float32: {dtype} has nothing to add; remove it"
    return f"{quantizer.name} has quantized the weights already; a recipe has one quantizer: remove one of them"


def _dtype(method: PassFacts, export: ExportSection) -> str | None:
    """Say why the artifact cannot have the type of its weights that a pass asks for."""
    dtype, formats = method.needs.dtype, method.needs.formats
    if dtype is None:
        if method.family == "quantize" and export.format != "safetensors" and export.dtype == "float16":
            return "scales of quantized weights are float32, export.dtype says float16; leave it auto"
        return None
    if export.format not in formats:
        return (
            f"{dtype} cannot be exported as {export.format}: ONNX Runtime's CPU kernels do not compute in it; "
            f"set export.format to {' or '.join(formats)}, or use fp16"
        )
    if export.dtype not in ("auto", dtype):
        return f"the pass makes the artifact {dtype}, export.dtype says {export.dtype}; leave it auto"
    return None


def _unmeasured(recipe: Recipe) -> Iterator[Problem]:
    """Yield the bounds on quality of a recipe without evaluation data."""
    if recipe.evaluation is None:
        for name in recipe.verify:
            if (BOUNDS[name] if name in BOUNDS else GATES[name]).metric:
                message = "is measured on evaluation data, and the recipe names none; add `evaluation: {data: ...}`"
                yield recipe.problem(("verify", name), message)
