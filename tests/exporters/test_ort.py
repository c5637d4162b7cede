"""ONNX Runtime's own format: converted, run, measured, verified, and caught when it is damaged."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compressor.errors import ModelError
from compressor.exporters.ort import MODEL, OPERATORS, convert, export_ort
from compressor.exporters.steps import STEPS
from compressor.measure.benchmark import file_bytes
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import ModelFolder, open_model
from compressor.pipeline.artifact import grid_records
from compressor.storage.artifact import runtime_model
from compressor.storage.grids import precision_of
from compressor.verification import REFERENCE, Job, Verdict, parameter_count, seal, verify, write_reference
from compressor.verification.ort import _initializers
from tests.core.test_loading import inputs_for
from tests.exporters.test_quantized import quantized
from tests.verification.test_sabotage import reasons, rehash

Pico = Callable[..., Path]


def made(source: ModelFolder, out: Path) -> Path:
    out.mkdir()
    told: list[str] = []
    result = export_ort(source, out, advance=told.append)
    assert len(told) == STEPS["ort"] and told[-1] == "graph converted"
    assert {out / MODEL, out / OPERATORS, out / "model.onnx"} <= set(result.files)
    write_reference(TorchRunner(source.path), out / REFERENCE)
    manifest = {
        "precision": precision_of(source.grids, "float32"),
        "parameters": parameter_count(source),
        **grid_records(source, result, graph=True),
    }
    seal(out, manifest)
    return out


@pytest.fixture(scope="module", params=["llama", "bert", "int4"])
def healthy(request: pytest.FixtureRequest, pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "int4":
        return made(quantized(pico("llama"), root / "w", bits=4, embedding=4, accuracy_level=4), root / "out")
    return made(open_model(pico(request.param)), root / "out")


def judged(folder: Path) -> Verdict:
    return verify(Job(folder, timing=False))


def test_a_healthy_artifact_passes(healthy: Path) -> None:
    verdict = judged(healthy)
    assert reasons(verdict) == {}
    checks = {check.name: check for check in verdict.checks}
    assert "parity.ort.batch.max_abs" in checks
    assert int(checks["weights.ort"].value or 0) > 10


def test_it_is_what_runs_and_what_counts(healthy: Path) -> None:
    assert runtime_model(healthy) == healthy / MODEL
    assert file_bytes(healthy) == (healthy / MODEL).stat().st_size


def test_outputs_are_those_of_the_model(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("bert"))
    export_ort(source, tmp_path)
    (tmp_path / "model.onnx").unlink()
    inputs = inputs_for(source.task)
    with torch.no_grad():
        expected = source.load()(**inputs)[0].numpy()
    found = OnnxRunner(tmp_path).forward({key: value.numpy() for key, value in inputs.items()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_operators_for_a_minimal_build(healthy: Path) -> None:
    listed = (healthy / OPERATORS).read_text()
    assert "com.microsoft;1;" in listed and "#" not in listed and str(healthy.parent) not in listed
    names = {"int4": "MatMulNBits", "llama": "GroupQueryAttention", "bert": "LayerNormalization"}
    graph = onnx.load(healthy / "model.onnx").graph
    kinds = {"int4" if node.op_type == "MatMulNBits" else "" for node in graph.node}
    kind = "int4" if "int4" in kinds else "llama" if (healthy / "genai_config.json").is_file() else "bert"
    assert names[kind] in listed


def fixed_addresses() -> bool:
    import ctypes

    if sys.platform != "linux":
        return False
    personality = ctypes.CDLL(None).personality
    before = int(personality(0xFFFFFFFF))
    allowed = personality(before | 0x0040000) != -1
    personality(before)
    return allowed


def test_the_same_again_and_no_leftovers(pico: Pico, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        export_ort(open_model(pico("llama")), tmp_path / name)
    assert {f.name for f in (tmp_path / "a").iterdir()} == {f.name for f in (tmp_path / "b").iterdir()}
    for file in (tmp_path / "a").iterdir():
        if file.name != MODEL or fixed_addresses():
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    before, after = (dict(_initializers(tmp_path / name / MODEL)) for name in "ab")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_external_data_is_taken_in(pico: Pico, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    export_ort(open_model(pico("bert")), tmp_path / "in")
    model = onnx.load(tmp_path / "in" / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    assert (tmp_path / "model.onnx.data").is_file()
    (tmp_path / "out").mkdir()
    convert(tmp_path / "model.onnx", tmp_path / "out")
    before, after = (dict(_initializers(tmp_path / folder / MODEL)) for folder in ("in", "out"))
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_a_graph_that_cannot_be_converted(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot convert"):
        convert(tmp_path / "model.onnx", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def flip(folder: Path, name: str) -> None:
    """Change one byte of a weight in the converted file."""
    path = folder / MODEL
    data = path.read_bytes()
    raw = bytes(dict(_initializers(path))[name])
    assert data.count(raw) == 1
    at = data.index(raw) + (len(raw) // 2 | 3)  # of a float, the byte with sign and exponent
    path.write_bytes(data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
    rehash(folder)


def test_a_damaged_weight_is_caught(healthy: Path, tmp_path: Path) -> None:
    victim = Path(shutil.copytree(healthy, tmp_path / "victim"))
    sizes = {name: len(raw) for name, raw in _initializers(victim / MODEL)}
    name = max((n for n in sizes if "embed" not in n), key=lambda n: sizes[n])
    flip(victim, name)
    verdict = judged(victim)
    assert verdict.exit_code in (3, 4)
    found = reasons(verdict)
    assert name in found.get("weights.ort", "") or any(key.startswith("parity.ort") for key in found), found
    assert "files.unchanged" not in found


@pytest.mark.parametrize("healthy", ["llama"], indirect=True)
def test_another_models_file_is_caught(healthy: Path, pico: Pico, tmp_path: Path) -> None:
    victim = Path(shutil.copytree(healthy, tmp_path / "victim"))
    other = json.loads((victim / "config.json").read_text())["model_type"]
    (tmp_path / "other").mkdir()
    export_ort(open_model(pico(other, seed=5)), tmp_path / "other")
    shutil.copy(tmp_path / "other" / MODEL, victim / MODEL)
    rehash(victim)
    found = reasons(judged(victim))
    assert any(name.startswith("parity.ort.") for name in found)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("healthy", ["llama"], indirect=True)
def test_truncated(keep: float, healthy: Path, tmp_path: Path) -> None:
    victim = Path(shutil.copytree(healthy, tmp_path / "victim"))
    data = (victim / MODEL).read_bytes()
    (victim / MODEL).write_bytes(data[: int(len(data) * keep)])
    rehash(victim)
    verdict = judged(victim)
    assert verdict.exit_code in (3, 4) and "graph.session" in reasons(verdict)


@pytest.mark.parametrize("healthy", ["llama"], indirect=True)
def test_damage_to_the_graph_beside_it(healthy: Path, tmp_path: Path) -> None:
    victim = Path(shutil.copytree(healthy, tmp_path / "victim"))
    model = onnx.load(victim / "model.onnx")
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2 and 100 in t.dims)
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.02), tensor.name))
    onnx.save(model, victim / "model.onnx")
    rehash(victim)
    found = reasons(judged(victim))
    assert {"weights.ort", "parity.ort.batch.max_abs"} & set(found)
