"""Quantized weights in graphs: what ONNX Runtime computes from the codes is what PyTorch computes from the values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.errors import ModelError, UsageError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.onnx.packed_products import pack_bits
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.cost import stored_bytes
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.verification.codes import check_codes, dequantised, digest
from compressor.verification.weights import open_weights
from tests.core.test_loading import inputs_for
from tests.core.toy import toy_batches

Pico = Callable[..., Path]


def quantized(source: Path, work: Path, **options: Any) -> ModelFolder:
    method = methods()["rtn"]
    instance = method(method.Options(**{"accuracy_level": 0, **options}))
    model = open_model(source)
    return apply_pass(instance, model, toy_batches(model.task), Setting(work, "test", 1 << 30))[0]


def exported(model: ModelFolder, out: Path, **options: Any) -> tuple[OnnxRunner, dict[str, list[str]]]:
    out.mkdir()
    result = export_onnx(model, out, OnnxOptions(**options))
    return OnnxRunner(out), result.codes


def outputs(model: ModelFolder, runner: OnnxRunner) -> tuple[np.ndarray, np.ndarray]:
    inputs = inputs_for(model.task)
    with torch.no_grad():
        expected = model.load()(**inputs)[0].numpy()
    return runner.forward({key: value.numpy() for key, value in inputs.items()}), expected


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"),
    [
        (2, 32, False),
        pytest.param(4, 16, True, marks=pytest.mark.exhaustive),
        (4, 32, False),
        pytest.param(4, 128, False, marks=pytest.mark.exhaustive),
        (8, 64, True),
    ],
)
def test_parity_with_odd_widths(pico: Pico, tmp_path: Path, bits: int, group: int, symmetric: bool):
    model = quantized(pico("llama"), tmp_path / "w", bits=bits, group_size=group, symmetric=symmetric)  # FFN width 100
    actual, expected = outputs(model, exported(model, tmp_path / "o")[0])
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["opt", "bert", "vit"])
def test_parity_of_every_kind(pico: Pico, tmp_path: Path, family: str):
    model = quantized(pico(family), tmp_path / "w", bits=4)
    actual, expected = outputs(model, exported(model, tmp_path / "o")[0])
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("graph", "hidden"), [("auto", 72), pytest.param("portable", 48, marks=pytest.mark.exhaustive)]
)
def test_a_tied_embedding_is_stored_once(pico: Pico, tmp_path: Path, graph: str, hidden: int):
    source = pico("llama", hidden_size=hidden)  # no multiples of 32
    model = quantized(source, tmp_path / "w", bits=4, embedding=4)
    runner, codes = exported(model, tmp_path / "o", graph=graph)
    actual, expected = outputs(model, runner)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert [name for name, modules in codes.items() if modules == ["model.embed_tokens"]] == [
        "model.embed_tokens.weight_packed"
    ]
    assert not any(
        t.name == "model.embed_tokens.weight" for t in onnx.load(tmp_path / "o" / "model.onnx").graph.initializer
    )


def test_head_and_embedding_of_their_own(pico: Pico, tmp_path: Path):
    model = quantized(pico("qwen2"), tmp_path / "w", bits=4, embedding=4, head=8)
    runner, codes = exported(model, tmp_path / "o")
    actual, expected = outputs(model, runner)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert {"model.embed_tokens", "lm_head"} <= {m for modules in codes.values() for m in modules}


def test_projections_are_packed_with_their_grids(pico: Pico, tmp_path: Path):
    model = quantized(pico("mistral"), tmp_path / "w", bits=4, symmetric=False)
    _, codes = exported(model, tmp_path / "o")
    attention = "model.layers.0.self_attn"
    assert codes[f"{attention}.qkv_proj.weight_packed"] == [f"{attention}.{x}_proj" for x in "qkv"]


def test_projections_of_different_bits_stay_apart(pico: Pico, tmp_path: Path):
    model = quantized(pico("mistral"), tmp_path / "w", bits=4, exclude=("*.q_proj",))
    runner, codes = exported(model, tmp_path / "o")
    actual, expected = outputs(model, runner)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert not any("qkv" in name or "q_proj" in name for name in codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_against_the_definition(bits: int):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 11), dtype=np.uint8)
    packed = pack_bits(codes, bits)
    for row, line in zip(codes, packed, strict=True):
        number = sum(int(code) << (bits * i) for i, code in enumerate(row))
        assert int.from_bytes(line.tobytes(), "little") == number


def test_digests_are_those_of_the_float_weights(pico: Pico, tmp_path: Path):
    model = quantized(pico("llama"), tmp_path / "w", bits=4, symmetric=False, embedding=8)
    _, codes = exported(model, tmp_path / "o")
    stored = open_weights(tmp_path / "o")
    found = dict(dequantised(stored))
    assert set(found) == set(codes)
    recorded = {}
    for name, modules in codes.items():
        parts = [model.weights.tensor(f"{module}.weight").numpy() for module in modules]
        np.testing.assert_array_equal(found[name], np.concatenate(parts))
        recorded[name] = digest(parts)
    assert [check.passed for check in check_codes(stored, {"codes": recorded})] == [True]
    other = {**recorded, next(iter(recorded)): "0" * 64}
    assert [check.passed for check in check_codes(stored, {"codes": other})] == [False]


def test_stored_bytes_are_predicted(pico: Pico, tmp_path: Path):
    model = quantized(pico("llama"), tmp_path / "w", bits=4, symmetric=False, embedding=4)
    exported(model, tmp_path / "o")
    initializers = onnx.load(tmp_path / "o" / "model.onnx").graph.initializer
    held = sum(onnx.numpy_helper.to_array(t).nbytes for t in initializers)
    tables = held - stored_bytes(model, 4)
    assert 0 <= tables < 20_000, "rotary tables and shapes come on top"


def test_half_precision_is_refused(pico: Pico, tmp_path: Path):
    model = quantized(pico("llama"), tmp_path / "w", bits=4)
    (tmp_path / "o").mkdir()
    with pytest.raises(UsageError, match=r"export\.dtype"):
        export_onnx(model, tmp_path / "o", OnnxOptions(dtype="float16"))


def test_an_edited_weight_is_refused(pico: Pico, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = quantized(pico("llama"), tmp_path / "w", bits=4)
    file = model.weights.entry("model.layers.0.mlp.up_proj.weight").file
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, file)
    (tmp_path / "o").mkdir()
    with pytest.raises(ModelError, match=r"mlp\.up_proj: the weight does not lie on its grid"):
        export_onnx(open_model(tmp_path / "w"), tmp_path / "o")
