"""Model files of an artifact in the format a recipe asks for."""

from __future__ import annotations

from pathlib import Path

from compressor.loading import ModelFolder
from compressor.recipe import ExportSection


def export_model(model: ModelFolder, folder: Path, section: ExportSection, dtype: str) -> None:
    """Write the model files of `model` into the existing `folder`; `dtype` is that of the stored weights.

    Raises:
        CompressorError: what the exporter raises.
    """
    if section.format == "safetensors":
        from compressor.exporters.safetensors import export_safetensors

        export_safetensors(model, folder, dtype=dtype)
        return
    from compressor.exporters.onnx import OnnxOptions, export_onnx

    opset = None if section.opset == "auto" else int(section.opset)
    export_onnx(model, folder, OnnxOptions(graph=section.graph, opset=opset, dtype=dtype))  # type: ignore[arg-type]
