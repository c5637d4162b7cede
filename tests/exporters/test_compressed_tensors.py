"""Quantized safetensors: stock transformers, with compressed-tensors, loads the bits that the quantized model has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from compressor.architectures.tasks import TASKS
from compressor.exporters.compressed_tensors import Layout
from compressor.exporters.onnx import export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.cost import stored_bytes
from compressor.model.folder import ModelFolder, load, open_model
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.quantize.rtn import Rtn, RtnOptions
from compressor.storage.grids import GridSpec
from compressor.storage.packed import pack_words, unpack_words
from tests.core.test_loading import inputs_for
from tests.core.toy import toy_batches
from tests.exporters.conftest import write_uneven
from tests.exporters.test_quantized import quantized

pytest.importorskip("compressed_tensors")
Pico = Callable[..., Path]

LOAD = """
import sys, numpy, torch, transformers
folder, out, name = sys.argv[1:]
model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
assert not any(module.startswith("compressor") for module in sys.modules)
inputs = numpy.load(out + "/inputs.npz")
with torch.no_grad():
    made = model(**{key: torch.from_numpy(value) for key, value in inputs.items()})[0]
numpy.save(out + "/outputs.npy", made.numpy())
"""


def exported(model: ModelFolder, out: Path, **options: Any) -> Path:
    out.mkdir()
    export_safetensors(model, out, **options)
    return out


def stock_outputs(folder: Path, task: str) -> np.ndarray[Any, Any]:
    """What transformers alone computes."""
    model = getattr(transformers, TASKS[task].auto_class).from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        made: np.ndarray[Any, Any] = model(**inputs_for(task))[0].numpy()
    return made


def fresh_outputs(folder: Path, task: str, scratch: Path) -> np.ndarray[Any, Any]:
    """What a process that has only transformers and compressed-tensors computes."""
    np.savez(scratch / "inputs.npz", **{key: value.numpy() for key, value in inputs_for(task).items()})
    name = TASKS[task].auto_class
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(scratch), name], capture_output=True, text=True, cwd=scratch
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made: np.ndarray[Any, Any] = np.load(scratch / "outputs.npy")
    return made


def expected(model: ModelFolder) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        made: np.ndarray[Any, Any] = model.load()(**inputs_for(model.task))[0].numpy()
    return made


def held_bytes(folder: Path) -> int:
    return sum(t.numel() * t.element_size() for f in folder.glob("*.safetensors") for t in load_file(f).values())


def same_weights(ours: torch.nn.Module, wanted: torch.nn.Module) -> bool:
    left, right = ours.state_dict(), wanted.state_dict()
    return all(torch.equal(left[name], tensor) for name, tensor in right.items())


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole groups": ("llama", {"group_size": 16, "symmetric": True, "exclude": ("*.down_proj",)}),
    "short last group": ("llama", {"symmetric": True}),
    "zero points": ("llama", {}),
    "two bits": ("opt", {"bits": 2}),
    "eight bits": ("vit", {"bits": 8}),
    "tied embedding": ("llama", {"embedding": 8}),
    "embedding and head": ("qwen2", {"embedding": 4, "head": 8, "symmetric": True}),
    "encoder": ("bert", {"embedding": 4}),
    "several kinds": ("qwen3", {"group_size": 16, "symmetric": True, "exclude": ("*.q_proj",)}),
}


@pytest.mark.parametrize("case", CASES)
def test_stock_transformers_computes_the_same(pico: Pico, tmp_path: Path, case: str) -> None:
    family, options = CASES[case]
    model = quantized(pico(family), tmp_path / "w", **options)
    out = exported(model, tmp_path / "o")
    np.testing.assert_array_equal(stock_outputs(out, model.task), expected(model))
    assert same_weights(load(out), model.load())
    assert held_bytes(out) == stored_bytes(model, 4, graph=False)


def test_a_process_without_this_package_computes_the_same(pico: Pico, tmp_path: Path) -> None:
    model = quantized(pico("llama"), tmp_path / "w", embedding=8)
    out = exported(model, tmp_path / "o")
    np.testing.assert_array_equal(fresh_outputs(out, model.task, tmp_path), expected(model))


def test_layers_of_their_own_widths(pico: Pico, tmp_path: Path) -> None:
    source = write_uneven(pico("llama", tie_word_embeddings=False), tmp_path / "source", shortcuts=True)
    model = quantized(source, tmp_path / "w", symmetric=True)
    out = exported(model, tmp_path / "o")
    assert same_weights(load(out), model.load())
    # The modelling file in the folder reorders sums of the shortcut blocks; weights are the same bits.
    np.testing.assert_allclose(stock_outputs(out, model.task), expected(model), atol=1e-5)


def test_without_the_library_our_loader_gives_the_same(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(pico("llama"), tmp_path / "w", embedding=8)
    out = exported(model, tmp_path / "o")
    inputs = {key: value.numpy() for key, value in inputs_for(model.task).items()}
    stock = TorchRunner(out).forward(inputs)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    np.testing.assert_array_equal(TorchRunner(out).forward(inputs), stock)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 31, 32, 100])
def test_packing_against_the_library(bits: int, count: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 1 << bits, (5, count), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    signed = (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    packed = pack_words(codes, bits)
    assert torch.equal(packed, pack_to_int32(signed, bits))
    assert torch.equal(unpack_words(packed, bits, count), codes)


def test_the_library_accepts_the_config(pico: Pico, tmp_path: Path) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    model = quantized(pico("qwen2"), tmp_path / "w", group_size=16, symmetric=True, head=8)
    config = Layout(model).config()
    read = QuantizationConfig.model_validate(config)
    bits = {target: group.weights.num_bits for group in read.config_groups.values() for target in group.targets}
    assert bits["lm_head"] == 8 and bits["model.layers.1.mlp.down_proj"] == 4
    strategies = {
        target: str(group.weights.strategy) for group in read.config_groups.values() for target in group.targets
    }
    assert strategies["model.layers.0.self_attn.q_proj"] == "group"
    assert strategies["model.layers.0.mlp.down_proj"] == "block", "100 inputs are no multiple of 16"


def test_modules_that_stay_float_are_ignored(pico: Pico, tmp_path: Path) -> None:
    model = quantized(pico("opt"), tmp_path / "w", exclude=("*.fc1",))
    config = Layout(model).config()
    assert [group["targets"] for group in config["config_groups"].values()] == [["Linear"]]
    assert {name.rpartition(".")[2] for name in config["ignore"]} == {"fc1", "lm_head"}


def test_a_head_is_named_besides_its_class(pico: Pico, tmp_path: Path) -> None:
    """vLLM's head is no `Linear`: the class alone would leave it without a scheme."""
    model = quantized(
        pico("qwen2", hidden_size=64, num_attention_heads=8, intermediate_size=128),
        tmp_path / "w",
        symmetric=True,
        head=4,
    )
    config = Layout(model).config()
    assert [group["targets"] for group in config["config_groups"].values()] == [["Linear", "lm_head"]]


def test_size_and_names(pico: Pico, tmp_path: Path) -> None:
    source = pico("llama", hidden_size=64, num_attention_heads=8, intermediate_size=128)
    out = exported(quantized(source, tmp_path / "w", symmetric=True), tmp_path / "o")
    tensors = load_file(out / "model.safetensors")
    stem = "model.layers.0.mlp.up_proj"
    assert {name.rpartition(".")[2] for name in tensors if name.startswith(stem)} == {
        "weight_packed",
        "weight_scale",
        "weight_shape",
    }
    assert tensors[f"{stem}.weight_packed"].shape == (128, 8) and tensors[f"{stem}.weight_scale"].shape == (128, 2)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert config["dtype"] == "float32"


def test_half_precision_keeps_scales_and_weights(pico: Pico, tmp_path: Path) -> None:
    model = quantized(pico("llama", dtype="bfloat16"), tmp_path / "w")
    out = exported(model, tmp_path / "o", dtype="bfloat16")
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.norm.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float32
    np.testing.assert_array_equal(stock_outputs(out, model.task), expected(model))


def test_shards_and_bytes_repeat(pico: Pico, tmp_path: Path) -> None:
    model = quantized(pico("llama"), tmp_path / "w", embedding=8)
    folders = [exported(model, tmp_path / name, shard_bytes=20_000) for name in "ab"]
    assert (folders[0] / "model.safetensors.index.json").is_file()
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()
    assert same_weights(load(folders[0]), model.load())
    np.testing.assert_array_equal(stock_outputs(folders[0], model.task), expected(model))


def test_a_packed_folder_is_a_source_like_any_other(pico: Pico, tmp_path: Path) -> None:
    model = quantized(pico("llama"), tmp_path / "w", embedding=4, accuracy_level=0)
    packed = open_model(exported(model, tmp_path / "o"))
    again = exported(packed, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "o" / "model.safetensors").read_bytes()
    (tmp_path / "onnx").mkdir()
    export_onnx(packed, tmp_path / "onnx")
    inputs = {key: value.numpy() for key, value in inputs_for(model.task).items()}
    np.testing.assert_allclose(OnnxRunner(tmp_path / "onnx").forward(inputs), expected(model), atol=1e-4)


class Bytes(Rtn):
    """8-bit weights with 8-bit activations."""

    kind: GridSpec

    def spec(self, name: str, bits: int) -> GridSpec:
        return self.kind


def in_bytes(source: Path, work: Path, **kind: Any) -> ModelFolder:
    method = Bytes(RtnOptions(embedding=8))
    method.kind = GridSpec(8, 0, True, **kind)
    model = open_model(source)
    return apply_pass(method, model, toy_batches(model.task), Setting(work, "test", 1 << 30))[0]


@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_dynamic_products_in_bytes(pico: Pico, tmp_path: Path, family: str) -> None:
    model = in_bytes(pico(family), tmp_path / "w", activations="dynamic")
    out = exported(model, tmp_path / "o")
    assert same_weights(load(out), model.load())
    found, wanted = stock_outputs(out, model.task), expected(model)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-6 < error < 0.05, "activations are rounded, and rightly so"


@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_static_products_in_bytes(pico: Pico, tmp_path: Path, family: str) -> None:
    scale, zero = 0.04, 120
    model = in_bytes(pico(family), tmp_path / "w", activations="static", input_scale=scale, input_zero_point=zero)
    out = exported(model, tmp_path / "o")
    assert same_weights(load(out), model.load())
    assert held_bytes(out) == stored_bytes(model, 4, graph=False)
    reference = model.load()

    def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return (torch.clamp(torch.round(inputs[0] / scale) + zero, 0, 255) - zero) * scale

    for name, module in reference.named_modules():
        if name in model.grids and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)
    with torch.no_grad():
        wanted = reference(**inputs_for(model.task))[0].numpy()
    found = stock_outputs(out, model.task)
    # A half at a rounding boundary may fall to either side: one step of one input.
    np.testing.assert_allclose(found, wanted, atol=2e-2)
    assert np.abs(expected(model) - wanted).mean() > 10 * np.abs(found - wanted).mean()
