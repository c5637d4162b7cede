"""Damage to quantized artifacts that keeps every file hash right: the content alone gives it away, with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.exporters.onnx import export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import ModelFolder
from compressor.pipeline.artifact import grid_records
from compressor.storage.grids import precision_of
from compressor.verification import REFERENCE, Job, Verdict, parameter_count, seal, verify, write_reference
from compressor.verification.codes import dequantised, digest
from compressor.verification.manifest import read_manifest
from compressor.verification.packed import checkpoint_weights
from compressor.verification.weights import open_weights
from tests.exporters.test_quantized import quantized
from tests.verification.test_sabotage import reasons, rehash, reseal

Pico = Callable[..., Path]
Edit = Callable[[Any], Any]
MLP, EMBEDDING = "model.layers.1.mlp.down_proj", "model.embed_tokens"


def sealed(model: ModelFolder, out: Path, form: str) -> Path:
    """What the pipeline leaves, less what plays no part here."""
    out.mkdir(parents=True)
    result = (export_onnx if form == "onnx" else export_safetensors)(model, out)
    write_reference(TorchRunner(model.path), out / REFERENCE)
    manifest = {
        "precision": precision_of(model.grids, "float32"),
        "parameters": parameter_count(model),
        **grid_records(model, result, graph=form == "onnx"),
    }
    seal(out, manifest)
    return out


@pytest.fixture(scope="module", params=["onnx", "safetensors"])
def healthy(request: pytest.FixtureRequest, pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with 4-bit weights in groups of 32, zero points, and a 4-bit embedding that is the head too."""
    root = tmp_path_factory.mktemp(request.param)
    model = quantized(pico("llama"), root / "model", bits=4, embedding=4, accuracy_level=4)
    return sealed(model, root / "artifact", request.param)


@pytest.fixture
def victim(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "victim"))


def judged(folder: Path) -> Verdict:
    return verify(Job(folder, timing=False))


def forge(folder: Path) -> None:
    """Write digests of the damaged weights into the manifest, and seal it: it agrees with the files in everything."""
    weights = open_weights(folder)
    matrices = dequantised(weights) if weights.is_onnx else checkpoint_weights(weights)
    manifest = {**read_manifest(folder), "codes": {name: digest([matrix]) for name, matrix in matrices}}
    manifest["weights"] = weights.table()
    reseal(folder, manifest)
    rehash(folder)


def is_onnx(folder: Path) -> bool:
    return (folder / "model.onnx").is_file()


def edit(folder: Path, name: str, change: Edit) -> None:
    """Change one stored tensor, in numpy, and bring the file hashes in line."""
    path = folder / ("model.onnx" if is_onnx(folder) else "model.safetensors")
    if is_onnx(folder):
        model = onnx.load(str(path))
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = onnx.numpy_helper.to_array(tensor)
        changed = np.array(change(array.copy()), order="C")
        assert not np.array_equal(changed, array)
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed, name))
        onnx.save(model, str(path))
    else:
        tensors = load_file(path)
        changed = torch.from_numpy(np.ascontiguousarray(change(tensors[name].numpy().copy())))
        assert not torch.equal(changed, tensors[name])
        save_file({**tensors, name: changed}, path, metadata={"format": "pt"})
    rehash(folder)


def name_of(folder: Path, leaf: str, module: str = MLP) -> str:
    if leaf == "zero":
        return f"{module}.{'weight_zero_packed' if is_onnx(folder) else 'weight_zero_point'}"
    if leaf == "codes":
        return f"{module}.{'weight' if module == EMBEDDING and not is_onnx(folder) else 'weight_packed'}"
    return f"{module}.weight_scale"


def one(change: Edit) -> Edit:
    """Change the first element alone."""

    def apply(array: Any) -> Any:
        array.reshape(-1)[:1] = change(array.reshape(-1)[:1])
        return array

    return apply


def bytes_of(change: Edit) -> Edit:
    """Change an array byte by byte, whatever its type."""

    def apply(array: Any) -> Any:
        raw = np.frombuffer(array.tobytes(), np.uint8)
        return np.frombuffer(np.ascontiguousarray(change(raw)).tobytes(), array.dtype).reshape(array.shape)

    return apply


DAMAGE: dict[str, tuple[str, str, Edit]] = {
    "wrong zero point": (MLP, "zero", one(lambda a: a ^ 1)),
    "zero points of other groups": (MLP, "zero", lambda a: np.roll(a, 1, axis=0)),
    "swapped nibbles": (MLP, "codes", bytes_of(lambda b: (b >> 4) | (b << 4))),
    "one code": (MLP, "codes", one(lambda a: a ^ 1)),
    "codes shifted by one": (MLP, "codes", lambda a: np.roll(a, 1, axis=0)),
    "stale scale": (MLP, "scale", lambda a: a * np.float32(1.05)),
    "one scale": (MLP, "scale", one(lambda a: np.nextafter(a, np.float32(9)))),
    "scale rows permuted": (MLP, "scale", lambda a: a.reshape(48, -1)[::-1].reshape(a.shape)),
    "codes of the embedding": (EMBEDDING, "codes", lambda a: np.roll(a, 1, axis=0)),
    "scales of the embedding": (EMBEDDING, "scale", one(lambda a: a * 2)),
}
BELOW_PARITY = ("one scale",)
"""Too small for outputs to tell; with forged digests they would be another model, not a broken one."""


def test_a_healthy_artifact_passes(healthy: Path) -> None:
    verdict = judged(healthy)
    assert reasons(verdict) == {} and verdict.exit_code == 0
    names = {check.name for check in verdict.checks}
    assert "weights.codes" in names
    assert ("parity.exact.batch.max_abs" if is_onnx(healthy) else "parity.batch.max_abs") in names


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_that_hashes_hide(case: str, victim: Path) -> None:
    module, leaf, change = DAMAGE[case]
    edit(victim, name_of(victim, leaf, module), change)
    verdict = judged(victim)
    assert verdict.exit_code == 4
    assert module.rpartition(".")[2] in reasons(verdict)["weights.codes"]
    assert "files.unchanged" not in reasons(verdict)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [case for case in DAMAGE if case not in BELOW_PARITY])
def test_damage_with_forged_digests(case: str, victim: Path) -> None:
    module, leaf, change = DAMAGE[case]
    edit(victim, name_of(victim, leaf, module), change)
    forge(victim)
    verdict = judged(victim)
    found = reasons(verdict)
    assert verdict.exit_code == 4
    assert "weights.codes" not in found and "files.seal" not in found
    group = "parity.exact." if is_onnx(victim) else "parity."
    assert any(name.startswith((group, "weights.tied")) for name in found), found


ATTRIBUTES = {"bits": (2, 8), "block_size": (16, 64), "accuracy_level": (0, 1), "K": (96,), "N": (40,)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ATTRIBUTES.items() for value in values])
@pytest.mark.parametrize("healthy", ["onnx"], indirect=True)
def test_attributes_of_a_product(name: str, value: int, victim: Path) -> None:
    path = victim / "model.onnx"
    model = onnx.load(str(path))
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and n.input[1].startswith(MLP))
    attribute = next(a for a in node.attribute if a.name == name)
    assert attribute.i != value
    attribute.i = value
    onnx.save(model, str(path))
    rehash(victim)
    verdict = judged(victim)
    assert verdict.exit_code in (3, 4)
    expected = "weights.accuracy_level" if name == "accuracy_level" else "weights.codes"
    assert expected in reasons(verdict)


@pytest.mark.parametrize("healthy", ["onnx"], indirect=True)
def test_a_product_left_in_float(victim: Path) -> None:
    """A quantized product replaced by another of the same values is no longer what was recorded."""
    path = victim / "model.onnx"
    model = onnx.load(str(path))
    found = dict(dequantised(open_weights(victim)))
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and n.input[1].startswith(MLP))
    weight = np.ascontiguousarray(found[node.input[1]].T)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "float_weight"))
    made = onnx.helper.make_node("MatMul", [node.input[0], "float_weight"], list(node.output), name=node.name)
    node.CopyFrom(made)
    onnx.save(model, str(path))
    rehash(victim)
    verdict = judged(victim)
    assert verdict.exit_code == 4 and MLP in reasons(verdict)["weights.codes"]


def config_of(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    rehash(folder)


def group(config: dict[str, Any]) -> Any:
    groups = config["quantization_config"]["config_groups"].values()
    return next(g["weights"] for g in groups if g["format"] == "pack-quantized")


STATED: dict[str, Callable[[dict[str, Any]], None]] = {
    "bits for transformers": lambda c: group(c).update(num_bits=8),
    "blocks for transformers": lambda c: group(c).update(block_structure=[1, 16]),
    "symmetric for transformers": lambda c: group(c).update(symmetric=True),
    "left out": lambda c: c["quantization_config"]["ignore"].append(MLP),
    "nothing for transformers": lambda c: c.pop("quantization_config"),
    "bits for us": lambda c: c["compression_grids"]["modules"][MLP].update(bits=8),
    "groups for us": lambda c: c["compression_grids"]["modules"][MLP].update(group_size=16),
    "nothing for us": lambda c: c.pop("compression_grids"),
}


@pytest.mark.parametrize("case", STATED)
@pytest.mark.parametrize("healthy", ["safetensors"], indirect=True)
def test_what_config_states_of_the_grids(case: str, victim: Path) -> None:
    config_of(victim, STATED[case])
    verdict = judged(victim)
    assert verdict.exit_code in (3, 4)
    assert {"weights", "weights.scheme", "weights.codes"} & set(reasons(verdict)), reasons(verdict)


@pytest.mark.parametrize("healthy", ["safetensors"], indirect=True)
def test_stated_shape(victim: Path) -> None:
    edit(victim, f"{MLP}.weight_shape", lambda a: a - [0, 1])
    verdict = judged(victim)
    assert verdict.exit_code == 3
    assert "shapes.graph" in reasons(verdict)


@pytest.mark.parametrize("healthy", ["safetensors"], indirect=True)
@pytest.mark.parametrize("leaf", ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"])
def test_a_tensor_is_missing(leaf: str, victim: Path) -> None:
    path = victim / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"{MLP}.{leaf}"]
    save_file(tensors, path, metadata={"format": "pt"})
    rehash(victim)
    verdict = judged(victim)
    assert verdict.exit_code in (3, 4)
    assert {"shapes.weights", "shapes.graph"} <= set(reasons(verdict))


def test_the_manifest_calls_it_a_float_model(victim: Path) -> None:
    reseal(victim, {**read_manifest(victim), "precision": "float32"})
    assert "quantized" in reasons(judged(victim))["precision.stated"]


def test_the_manifest_forgets_the_codes(victim: Path) -> None:
    reseal(victim, {key: value for key, value in read_manifest(victim).items() if key != "codes"})
    assert "no codes" in reasons(judged(victim))["weights.codes"]
