"""Reading and writing safetensors, checked against the safetensors library."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from compressor.errors import ModelError
from compressor.storage.tensors import INDEX, Plan, read_header, sha256_of, stored_entries, write_safetensors


def _plan(name: str, tensor: torch.Tensor) -> Plan:
    return Plan(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), lambda: tensor)


def test_written_file_is_read_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "b.weight": torch.randn(3, 5),
        "a": torch.arange(7),
        "half": torch.randn(2, 2).to(torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
    }
    digest = write_safetensors(tmp_path / "x.safetensors", [_plan(n, t) for n, t in tensors.items()])
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert digest == sha256_of(tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("*.part"))


def test_order_of_plans_does_not_change_the_bytes(tmp_path: Path) -> None:
    plans = [_plan("a", torch.ones(3)), _plan("b", torch.zeros(2))]
    assert write_safetensors(tmp_path / "1", plans) == write_safetensors(tmp_path / "2", reversed(plans))


def test_another_shape_than_planned_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="as planned"):
        write_safetensors(tmp_path / "x", [Plan("a", "float32", (2,), lambda: torch.ones(3))])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("cut", [0, 4, 9, 60, -1])
def test_truncated_file(tmp_path: Path, cut: int) -> None:
    save_file({"w": torch.ones(64)}, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        stored_entries(tmp_path)


def test_dtype_that_is_not_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "w": torch.ones(64).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="dtype that is not read: w is F8_E4M3; allowed: F64, F32") as caught:
        stored_entries(tmp_path)
    assert "ownload" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), length=st.integers(0, 2**64 - 1))
def test_any_bytes_give_a_model_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    file.write_bytes(struct.pack("<Q", length) + data)
    with pytest.raises(ModelError):
        read_header(file)
    file.write_bytes(struct.pack("<Q", len(data)) + data)
    try:
        read_header(file)
    except ModelError as error:
        assert error.exit_code == 3


def test_pickle_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pytorch_model.bin") as caught:
        stored_entries(tmp_path)
    assert "pickle" in str(caught.value)


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "sub/../../x.safetensors"])
def test_index_that_points_outside_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": target}}))
    with pytest.raises(ModelError, match="outside"):
        stored_entries(tmp_path)


def test_index_that_names_an_absent_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "s.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "s.safetensors", "b": "s.safetensors"}}))
    with pytest.raises(ModelError, match="no shard holds: b"):
        stored_entries(tmp_path)
