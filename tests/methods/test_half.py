"""fp16 and bf16: what the artifact stores, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open

from compressor.data.kinds import Batches
from compressor.errors import ModelError, RecipeError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.folder import open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.pipeline.artifact import export_model
from compressor.pipeline.plan import artifact_dtype, plan
from compressor.pipeline.prepare import prepare
from compressor.recipe import parse_recipe
from tests.core.test_loading import inputs_for

Make = Callable[..., Path]
RECIPE = """
version: 1
name: half
passes:
  - {method}: {{}}
export: {{format: {format}}}
"""


def recipe(method: str, format: str, more: str = "") -> Any:
    options = {name: cls.Options for name, cls in methods().items()}
    return parse_recipe(RECIPE.format(method=method, format=format) + more, options=options, source="half.yaml")


@pytest.mark.parametrize(("method", "format"), [("fp16", "onnx"), ("fp16", "safetensors"), ("bf16", "safetensors")])
def test_the_artifact_holds_rounded_weights(pico: Make, tmp_path: Path, method: str, format: str) -> None:
    folder = pico("bert")
    prepared = prepare(recipe(method, format), str(folder))
    dtype = artifact_dtype(prepared)
    assert dtype == {"fp16": "float16", "bf16": "bfloat16"}[method]
    assert artifact_dtype(prepared, after=0) == "float32", "the dense artifact stays as it is"
    export_model(prepared.source, tmp_path, prepared.recipe.export, dtype)
    name = "encoder.layer.1.intermediate.dense.weight"
    wanted = prepared.source.weights.tensor(name).to(getattr(torch, dtype))
    if format == "onnx":
        tensors = {t.name: t for t in onnx.load(str(tmp_path / "model.onnx")).graph.initializer}
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors[name]).T, wanted.numpy())
    else:
        with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
            assert torch.equal(file.get_tensor(name), wanted)


@pytest.mark.parametrize(
    ("method", "format", "more", "said"),
    [
        ("bf16", "onnx", "", "set export.format to safetensors, or use fp16"),
        ("fp16", "onnx, dtype: float32", "", "export.dtype says float32; leave it auto"),
    ],
)
def test_impossible_exports_are_recipe_errors(pico: Make, method: str, format: str, more: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        prepare(recipe(method, format, more), str(pico("bert")))
    assert caught.value.exit_code == 2 and f"passes[0].{method}" in str(caught.value)


def test_not_on_top_of_integers(pico: Make) -> None:
    text = RECIPE.format(method="rtn", format="onnx").replace("export:", "  - fp16: {}\nexport:")
    options = {name: cls.Options for name, cls in methods().items()}
    with pytest.raises(RecipeError, match="integer grids"):
        prepare(parse_recipe(text, options=options, source="half.yaml"), str(pico("bert")))


@pytest.mark.parametrize(
    "family", ["llama", "bert", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("vit", "opt"))]
)
def test_float16_graphs_compute_the_model(pico: Make, tmp_path: Path, family: str) -> None:
    source = open_model(pico(family, head_dim=16) if family == "llama" else pico(family))
    export_onnx(source, tmp_path, OnnxOptions(dtype="float16"))
    inputs = inputs_for(source.task)
    with torch.no_grad():
        wanted = source.load()(**inputs)[0].numpy()
    found = OnnxRunner(tmp_path).forward({key: value.numpy() for key, value in inputs.items()})
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_the_plan_counts_two_bytes(pico: Make) -> None:
    found = plan(recipe("fp16", "onnx"), model=str(pico("bert")))
    assert found["ratios"]["bytes"] == 0.5 and found["export"]["dtype"] == "float16"


def test_what_overflows_is_refused(pico: Make, tmp_path: Path) -> None:
    source = open_model(pico("bert"))
    method: Any = methods()["fp16"](methods()["fp16"].Options())
    setting = Setting(work=tmp_path / "a", fingerprint="f", cache_bytes=1 << 30)
    _, changes = apply_pass(method, source, Batches(tuple, 0), setting)
    assert 0 < changes[0].figures["quantization_error"] < 2.0**-22

    def huge(name: str) -> torch.Tensor:
        return original(name) * (1e6 if name.endswith("layer.1.output.dense.weight") else 1)

    original = source.weights.tensor
    object.__setattr__(source.weights, "tensor", huge)
    with pytest.raises(ModelError, match="encoder.layer.1.output.dense.weight holds values that float16 has no room"):
        apply_pass(method, source, Batches(tuple, 0), Setting(work=tmp_path / "b", fingerprint="g", cache_bytes=0))
