"""Model files of an artifact in the format a recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.architectures import EMBEDDINGS
from compressor.exporters.result import ExportResult
from compressor.exporters.steps import Advance, silent
from compressor.machine.processor import target_for
from compressor.model.folder import ModelFolder
from compressor.recipe import ExportSection
from compressor.storage.artifact import ONNX_MODEL
from compressor.verification.codes import INPUTS, digest
from compressor.verification.codes import KEY as CODES
from compressor.verification.exact import LEVELS


def export_model(
    model: ModelFolder,
    folder: Path,
    section: ExportSection,
    dtype: str,
    advance: Advance = silent,
    graph: str = ONNX_MODEL,
) -> ExportResult:
    """Write the model files of `model` into the existing `folder`; `dtype` is that of the stored weights.

    `graph` is the file of the ONNX graph; one that takes embeddings has that of the embedding beside it.

    `advance` is told what has been done, as often as `compressor.exporters.steps.STEPS` says.

    Raises:
        CompressorError: what the exporter raises.
    """
    if section.format == "safetensors":
        from compressor.exporters.safetensors import export_safetensors

        return export_safetensors(model, folder, dtype=dtype, advance=advance)
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.exporters.ort import export_ort

    opset = None if section.opset == "auto" else int(section.opset)
    arm = target_for(section.target) == "arm64"
    options = OnnxOptions(
        graph=section.graph,
        opset=opset,
        dtype=dtype,  # type: ignore[arg-type]
        arm=arm,
        kept_mask=section.kept_mask,
        name=graph,
        embeddings=EMBEDDINGS.get(graph),
    )
    export = export_ort if section.format == "ort" else export_onnx
    return export(model, folder, options, advance=advance)


def grid_records(model: ModelFolder, result: ExportResult, *, graph: bool) -> dict[str, dict[str, Any]]:
    """Return what compression.json records of quantized weights, by which verification knows them again.

    Args:
        model: the compressed model.
        result: of its export.
        graph: whether it was exported as a graph, which says how products round their inputs.
    """
    codes = result.codes
    records: dict[str, dict[str, Any]] = {CODES: code_digests(model, codes)}
    if graph:
        records |= {LEVELS: accuracy_levels(model, codes), INPUTS: input_grids(model, codes)}
    return records


def code_digests(model: ModelFolder, codes: Mapping[str, list[str]]) -> dict[str, str]:
    """Return name of stored codes -> sha256 of the float weights that they stand for, read from the model folder.

    Args:
        model: the compressed model.
        codes: name of stored codes -> modules (`ExportResult.codes`).
    """
    weights = model.weights
    found = {
        name: digest(weights.tensor(f"{module}.weight").float().numpy() for module in modules)
        for name, modules in codes.items()
    }
    weights.close()
    return found


def accuracy_levels(model: ModelFolder, codes: Mapping[str, list[str]]) -> dict[str, int]:
    """Return name of stored codes -> the accuracy level chosen for its product; weight-only products alone have one.

    Args:
        model: the compressed model.
        codes: name of stored codes -> modules (`ExportResult.codes`).
    """
    specs = {name: model.grids[modules[0]] for name, modules in codes.items()}
    return {name: spec.accuracy_level for name, spec in specs.items() if spec.activations == "float"}


def input_grids(model: ModelFolder, codes: Mapping[str, list[str]]) -> dict[str, list[float]]:
    """Return name of stored codes -> step and zero point of the calibrated grid of the product's input.

    Args:
        model: the compressed model.
        codes: name of stored codes -> modules (`ExportResult.codes`).
    """
    specs = {name: model.grids[modules[0]] for name, modules in codes.items()}
    calibrated = {name: spec for name, spec in specs.items() if spec.activations == "static" and spec.input_scale}
    return {
        name: [float(np.float32(spec.input_scale)), float(spec.input_zero_point)] for name, spec in calibrated.items()
    }
