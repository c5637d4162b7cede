"""ONNX artifacts: `export_onnx` for a model folder, `export_module` for a module in memory."""

from compressor.exporters.onnx.export import OnnxOptions, export_module, export_onnx
from compressor.exporters.result import ExportResult

__all__ = ["ExportResult", "OnnxOptions", "export_module", "export_onnx"]
