"""From a folder to the runner of what lies in it."""

from __future__ import annotations

from pathlib import Path

from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.storage.artifact import runtime_model


def open_runner(folder: Path, threads: int = 1) -> OnnxRunner | TorchRunner:
    """Return an `OnnxRunner` when the folder holds a graph, else a `TorchRunner`."""
    folder = Path(folder)
    return OnnxRunner(folder, threads) if runtime_model(folder) is not None else TorchRunner(folder, threads)
