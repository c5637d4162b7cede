"""Images of another size than the model was trained on: positions are resampled as stock transformers does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compressor.data.images import open_images
from compressor.errors import DataError, ModelError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.benchmark import image_shape
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.cost import image_tokens
from compressor.model.folder import ModelFolder, open_model
from compressor.verification.source import compare

Pico = Callable[..., Path]
STORED = 32


@pytest.fixture
def sized(pico: Pico, tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of a pico-model whose image processor gives images of another size."""

    def make(family: str, **settings: Any) -> Path:
        folder = Path(shutil.copytree(pico(family), tmp_path / family))
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        return folder

    return make


def square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("family", "side"), [("vit", 48), ("vit", 20), ("deit", 40), ("dinov2", 48), ("dinov2_with_registers", 60)]
)
def test_the_model_is_read_as_stock_resamples_it(sized: Callable[..., Path], family: str, side: int) -> None:
    model = open_model(sized(family, **square(side)))
    assert (model.trained_size, model.config.image_size) == (STORED, side)
    assert image_tokens(model) == (side // 8) ** 2 + model.family.leading_tokens
    assert compare(model)["difference"] <= 1e-6
    assert image_shape(model.path) == (3, side, side)
    with torch.no_grad():
        wanted = model.load()(pixel_values=images(side))[0].numpy()
    assert abs(TorchRunner(model.path).forward({"pixel_values": images(side).numpy()}) - wanted).max() < 1e-5


def exported(model: ModelFolder, out: Path, how: Callable[..., Any], *options: Any) -> Path:
    out.mkdir()
    how(model, out, *options)
    return out


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_an_artifact_is_of_that_size(sized: Callable[..., Path], family: str, tmp_path: Path) -> None:
    model = open_model(sized(family, **square(48)))
    stock = transformers.AutoModelForImageClassification.from_pretrained(model.path).eval()
    asked = {"interpolate_pos_encoding": True} if family == "vit" else {}
    with torch.no_grad():
        wanted = stock(images(48), **asked).logits.numpy()
    graph = OnnxRunner(exported(model, tmp_path / "onnx", export_onnx, OnnxOptions()))
    assert abs(graph.forward({"pixel_values": images(48).numpy()}) - wanted).max() < 1e-4
    plain = exported(model, tmp_path / "plain", export_safetensors)
    assert json.loads((plain / "config.json").read_text())["image_size"] == 48
    again = transformers.AutoModelForImageClassification.from_pretrained(plain).eval()
    with torch.no_grad():
        assert abs(again(images(48)).logits.numpy() - wanted).max() < 1e-4
    assert open_model(plain).trained_size is None


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("dinov2", {"size": {"height": 48, "width": 40}}),
        ("clip_vision_model", square(48)),
        ("vit", {"size": {"shortest_edge": 48}}),
    ],
)
def test_sizes_that_cannot_be_resampled_to_are_refused(
    sized: Callable[..., Path], kind: str, settings: dict[str, Any]
) -> None:
    model = open_model(sized(kind, **settings))
    assert model.trained_size is None
    with pytest.raises(DataError) as raised:
        open_images(model.path, model.config)
    assert "resampled" in str(raised.value.hint)


def test_positions_that_do_not_fit_their_config_are_no_smaller_grid(sized: Callable[..., Path]) -> None:
    folder = sized("vit", **square(48))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_size": 24}))
    with pytest.raises(ModelError, match="image_size 24 in config.json"):
        open_model(folder).weights.names()
