"""What a recipe will do to a model, from config.json alone: exact sizes and FLOPs, estimated memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from compressor.data.preprocessors import load_processor, load_tokenizer
from compressor.data.reading import DataRequest, find_data
from compressor.errors import DataError
from compressor.model.cost import Cost, count_cost, layers_before_and_after
from compressor.model.folder import ModelFolder
from compressor.pipeline.memory import estimate_memory, estimate_seconds, samples_at_half
from compressor.pipeline.place import restore
from compressor.pipeline.prepare import Prepared, planned_model
from compressor.pipeline.whole import Whole, prepare_any
from compressor.recipe import PART, ExportSection, Recipe


def plan(recipe: Recipe, *, model: str | None = None) -> dict[str, Any]:
    """Return sizes before and after every pass, peak memory and a time estimate; loads no weights.

    Parameters, bytes of the weights and FLOPs are exact, but for bytes that depend on what calibration finds
    (`bytes_exact`): grids chosen by sensitivity, or laid over widths of such choice. Peak memory is a model of the
    run's own allocations; seconds are those of the passes and follow from FLOPs and a rate measured once on this
    machine; `half` says with how many calibration samples they would be about half as many.

    Raises:
        CompressorError: what `prepare` raises, and what a run would say of the model's folder before it begins.
    """
    restore(model or recipe.model.id)
    bound = prepare_any(recipe, model)
    if isinstance(bound, Whole):
        return _together(bound, {part: _planned(prepared) for part, prepared in bound.parts.items()})
    return _planned(bound)


def _together(whole: Whole, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the plans of all parts as one: sizes and times add up, and one part is compressed at a time."""
    plans = list(parts.values())
    sides = {side: {key: sum(plan[side][key] for plan in plans) for key in plans[0][side]}
             for side in ("dense", "planned")}  # fmt: skip
    notes = [f"{part}: {note}" for part, plan in parts.items() for note in plan["notes"]]
    return {
        **plans[0],
        **sides,
        "model": {"id": whole.model_id, "parameters": sides["dense"]["parameters"], "task": whole.task,
                  "family": " and ".join(plan["model"]["family"] for plan in plans)},
        "passes": [{**entry, PART: part} for part, plan in parts.items() for entry in plan["passes"]],
        "bytes_exact": all(plan["bytes_exact"] for plan in plans),
        "ratios": {key: sides["planned"][key] / sides["dense"][key] for key in plans[0]["ratios"]},
        "length": max(plan["length"] for plan in plans),
        "peak_memory_bytes": max(plan["peak_memory_bytes"] for plan in plans),
        "seconds_estimate": sum(plan["seconds_estimate"] for plan in plans),
        "half": None,
        "notes": list(dict.fromkeys([*whole.doubts, *notes])),
    }  # fmt: skip


def _planned(prepared: Prepared) -> dict[str, Any]:
    """Return the plan of a model, or of one part of it."""
    recipe, source = prepared.recipe, prepared.source
    _check_folder(prepared)
    dtype = artifact_dtype(prepared)
    models = [planned_model(prepared, i) for i in range(len(prepared.blueprints))]
    graph = recipe.export.format != "safetensors"
    costs = [
        count_cost(item, prepared.length, artifact_dtype(prepared, after=i), graph=graph)
        for i, item in enumerate(models)
    ]
    final = count_cost(models[-1], prepared.length_after, artifact_dtype(prepared), graph=graph)
    return {
        "recipe": recipe.name,
        "model": {"id": prepared.model_id, "parameters": costs[0].parameters, "task": source.task,
                  "family": source.family.name},
        "passes": [_pass_entry(prepared, models, costs, i) for i in range(len(prepared.passes))],
        "dense": asdict(costs[0]),
        "planned": asdict(final),
        "bytes_exact": not models[-1].grids or all(method.needs.foreseen for method in prepared.passes),
        "ratios": {key: getattr(final, key) / getattr(costs[0], key) for key in ("parameters", "bytes", "flops")},
        "length": prepared.length if source.family.inputs == "tokens" else 0,
        "peak_memory_bytes": estimate_memory(prepared),
        "seconds_estimate": estimate_seconds(prepared, costs[0].flops),
        "half": samples_at_half(prepared, costs[0].flops),
        "calibration": None if prepared.calibration is None else {
            "data": prepared.calibration.data, "samples": prepared.calibration.samples,
            "length": prepared.calibration.length, "seed": prepared.calibration.seed},
        "export": {"format": recipe.export.format, "dtype": dtype, "target": prepared.target.processor},
        "notes": [*prepared.doubts, *_missing_data(prepared)],
    }  # fmt: skip


def _check_folder(prepared: Prepared) -> None:
    """See that the weights are there, by the heads of their files, and what the data needs to be read with.

    Raises:
        ModelError: tensors are missing, or do not have the shapes of config.json.
        DataError: the tokenizer or the image processor is missing or damaged.
    """
    source = prepared.source
    source.weights.names()
    requests = _requests(prepared)
    if requests and source.family.inputs == "pixels":
        load_processor(source.path)
    elif requests:
        load_tokenizer(source.path, requests[0].key)


def _missing_data(prepared: Prepared) -> Iterator[str]:
    """Yield what a run would say of data that is not there: a plan can do without."""
    for request in _requests(prepared):
        try:
            find_data(request)
        except DataError as error:
            yield f"{error.message}; a run needs it"


def _requests(prepared: Prepared) -> list[DataRequest]:
    """Return the requests for data that a run would read."""
    wanted = (prepared.calibration if prepared.uses_calibration else None, prepared.evaluation)
    return [request for request in wanted if request is not None]


def artifact_dtype(prepared: Prepared, after: int | None = None) -> str:
    """Return the dtype of the artifact's weights after some passes (None: all; 0: of the dense artifact).

    That of a pass that sets one; else that of the dense artifact.
    """
    for method in reversed(prepared.passes[:after]):
        if method.needs.dtype is not None:
            return method.needs.dtype
    return dense_dtype(prepared.source, prepared.recipe.export)


def dense_dtype(source: ModelFolder, export: ExportSection) -> str:
    """Return the dtype of the weights of a model as it came: the recipe's; else float32 in ONNX, its own in PyTorch."""
    if export.dtype != "auto":
        return str(export.dtype)
    if export.format != "safetensors":
        return "float32"
    if source.store_dtype:
        return source.store_dtype
    stated = str(getattr(source.config, "dtype", None) or "float32")
    return stated.removeprefix("torch.")


def _pass_entry(prepared: Prepared, models: list[ModelFolder], costs: list[Cost], index: int) -> dict[str, Any]:
    method = prepared.passes[index]
    return {
        "name": method.name,
        "family": method.family,
        "parameters_before": costs[index].parameters,
        "parameters_after": costs[index + 1].parameters,
        "layers": layers_before_and_after(models[index], models[index + 1]),
    }
