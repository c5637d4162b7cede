"""DINOv2's layer scale is folded into the writers before any pass sees them; fused matrices are read as two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compressor.errors import ModelError
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.verification.source import compare
from compressor.walk import Walk
from compressor.walk.calls import run_block
from tests.core.test_loading import inputs_for
from tests.core.toy import Cut, toy_batches

Pico = Callable[..., Path]
PLENTY = 1 << 30
WRITERS = {"layer_scale1.lambda1": "attention.output.dense", "layer_scale2.lambda1": "mlp.fc2"}


def rescaled(pico: Pico, folder: Path, *, fold: bool) -> ModelFolder:
    """Return the pico-model with layer scales from 0 to 3; `fold`: multiplied into the writers by hand."""
    shutil.copytree(pico("dinov2"), folder)
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        scale = next((scale for scale in WRITERS if name.endswith(scale)), None)
        if scale is None:
            continue
        tensors[name] = torch.linspace(0, 3, len(tensors[name])).roll(len(name))
        if fold:
            writer = name.replace(scale, WRITERS[scale])
            for leaf in ("weight", "bias"):
                stored = tensors[f"{writer}.{leaf}"]
                tensors[f"{writer}.{leaf}"] = torch.stack(
                    [row * factor for row, factor in zip(stored, tensors[name], strict=True)]
                )
            tensors[name] = torch.ones(len(tensors[name]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_model(folder)


def test_an_opened_block_computes_what_the_model_does(pico: Pico, tmp_path: Path) -> None:
    source = rescaled(pico, tmp_path / "model", fold=False)
    stock = source.load()
    for index, view in enumerate(Walk(source, toy_batches(source.task), work=tmp_path, cache_bytes=PLENTY).survey()):
        block = stock.get_submodule(f"dinov2.encoder.layer.{index}")
        assert float(block.layer_scale1.lambda1.max()) == 3
        with torch.no_grad():
            wanted = run_block(block, view.dense_in(0), view.call(0))
            torch.testing.assert_close(run_block(view.module, view.dense_in(0), view.call(0)), wanted)
        assert {float(value) for scale in WRITERS for value in view.module.get_parameter(scale)} == {1.0}


def test_fits_see_what_reaches_the_stream(pico: Pico, tmp_path: Path) -> None:
    """Closed-form fits against a scaled writer give the bytes that they give where there is no scale."""
    found = []
    for fold in (False, True):
        source = rescaled(pico, tmp_path / f"model-{fold}", fold=fold)
        method = methods()["width"]
        setting = Setting(tmp_path / f"work-{fold}", "t", PLENTY)
        apply_pass(method(method.Options(sparsity=0.3)), source, toy_batches(source.task), setting)
        found.append({f.name: f.read_bytes() for f in sorted(setting.work.glob("*.safetensors"))})
    assert found[0] == found[1]


def test_gate_and_up_stored_as_one_are_read_as_two(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("dinov2", use_swiglu_ffn=True))
    assert any("weights_in" in name for name in load_file(source.path / "model.safetensors"))
    assert compare(source)["difference"] <= 1e-6
    setting = Setting(tmp_path, "t", PLENTY)
    model, _ = apply_pass(Cut(source.shapes.layers[0].intermediate_size), source, toy_batches(source.task), setting)
    stock = transformers.AutoModelForImageClassification.from_pretrained(model.path).eval()
    inputs = inputs_for(source.task)
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, model.load()(**inputs).logits)


def test_a_ratio_that_leaves_no_channel_is_refused(pico: Pico, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pico("dinov2"), tmp_path / "model"))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"mlp_ratio": 2', '"mlp_ratio": 0'))
    with pytest.raises(ModelError, match="mlp_ratio is 0; allowed"):
        open_model(folder)
