"""One small real artifact, exported once per session, and ways to damage copies of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.data.reading import DataRequest
from compressor.verification import REFERENCE, Job, Verdict, parameter_count, seal, verify, write_reference
from tests.pico import sample_text


def export(source: Path, out: Path, *, precision: str = "float32", **options: str) -> Path:
    """Export a model folder to a sealed artifact with its reference, as the pipeline does."""
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.measure.torch_runner import TorchRunner
    from compressor.model.folder import open_model

    model = open_model(source)
    out.mkdir(parents=True)
    export_onnx(model, out, OnnxOptions(**options))  # type: ignore[arg-type]
    write_reference(TorchRunner(source), out / REFERENCE)
    layers = [
        {"intermediate_size": layer.intermediate_size, "num_key_value_heads": layer.num_key_value_heads}
        for layer in model.shapes.layers
    ]
    seal(out, {"precision": precision, "parameters": parameter_count(model), "layers": layers})
    return out


@pytest.fixture(scope="session")
def artifact(pico: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy decoder artifact; read-only."""
    return export(pico("llama"), tmp_path_factory.mktemp("artifact") / "llama")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> DataRequest:
    """Evaluation text."""
    path = tmp_path_factory.mktemp("text") / "valid.txt"
    path.write_text(sample_text(), encoding="utf-8")
    return DataRequest(str(path), (), 8, 32, 0, "evaluation")


@pytest.fixture
def victim(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact to damage."""
    return Path(shutil.copytree(artifact, tmp_path / "victim"))


@pytest.fixture
def judge(artifact: Path, text: DataRequest) -> Callable[[Path], Verdict]:
    """Verify a folder against the healthy artifact, on text, without timing."""
    return lambda folder: verify(Job(folder, dense=artifact, data=text, timing=False))
