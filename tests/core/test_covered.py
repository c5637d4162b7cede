"""What config.json and the tokenizer tell is said before work begins; what changes nothing is no obstacle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compressor.data.images import open_images, pixels
from compressor.data.vocabulary import greatest_token
from compressor.errors import DataError, ModelError
from compressor.exporters.onnx.rotary import check_rotation
from compressor.measure.torch_runner import TorchRunner
from compressor.model.cost import count_flops
from compressor.model.folder import open_model
from compressor.model.source import read_config
from compressor.pipeline.covered import check_covered
from tests.pico import FAMILIES, VOCAB, make_pico, write_processor, write_tokenizer

KINDS = {"llama": "llama", "bert": "bert", "vit": "vit", "opt": "opt"}


def described(folder: Path, family: str, **changes: Any) -> Path:
    """Write the config.json and the tokenizer of a family's pico-model, without weights."""
    architecture, kind, config = FAMILIES[family]
    folder.mkdir(exist_ok=True)
    stated = {"model_type": KINDS[family], "architectures": [architecture], **config, **changes}
    (folder / "config.json").write_text(json.dumps(stated))
    if kind == "image":
        write_processor(folder, "ViTImageProcessor")
    else:
        write_tokenizer(folder, kind, 64)
    return folder


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("llama", "is_causal", False),
        ("opt", "is_causal", False),
    ],
)
def test_settings_that_make_another_computation_are_named(family: str, key: str, value: bool, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"config.json: {key} is {value}"):
        open_model(described(tmp_path, family, **{key: value}))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
)
def test_rotations_by_length_are_refused_for_graphs_alone(rope: dict[str, Any], tmp_path: Path) -> None:
    model = open_model(described(tmp_path, "llama", rope_parameters=rope))
    check_covered(model, "safetensors", data=False)
    with pytest.raises(ModelError, match=f"rope_type '{rope['rope_type']}'"):
        check_covered(model, "onnx", data=False)


def test_rotations_by_layer_are_looked_at_too() -> None:
    class Mixed:
        rope_parameters = {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}

    with pytest.raises(ModelError, match="dynamic"):
        check_rotation(Mixed())


def test_a_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    model = open_model(described(tmp_path, "llama"))
    check_covered(model, "onnx", data=False)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    state["added_tokens"].append({**state["added_tokens"][0], "id": VOCAB, "content": "[PAD]"})
    file.write_text(json.dumps(state))
    with pytest.raises(
        ModelError, match=rf"token {VOCAB} \('\[PAD\]'\); vocab_size in config.json is {VOCAB}"
    ) as caught:
        check_covered(model, "onnx", data=False)
    assert f"resize_token_embeddings({VOCAB + 1})" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer.json": "{"}, None),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 0, "b": 7}}}'}, (7, "b")),
        ({"tokenizer.json": '{"model": {"vocab": [["a", 0.0], ["b", -1.5]]}}'}, (1, "b")),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 0}}}', "vocab.txt": "a\nb\nc\n"}, (0, "a")),
        ({"vocab.txt": "a\nb\nc\n"}, (2, "c")),
        ({"vocab.json": '{"a": 0}', "added_tokens.json": '{"<x>": 4}'}, (4, "<x>")),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"9": {"content": "<y>"}}}'}, (9, "<y>")),
    ],
)
def test_the_greatest_token(files: dict[str, str], expected: tuple[int, str] | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert greatest_token(tmp_path) == expected


@pytest.mark.parametrize("family", ["qwen2", "opt", "bert", "vit"])
def test_settings_of_what_is_returned_change_nothing(family: str, tmp_path: Path) -> None:
    returned = {"return_dict": False, "output_hidden_states": True}
    make_pico(family, tmp_path, num_hidden_layers=1, **({} if family in ("bert", "vit") else {"use_cache": False}))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **returned}))
    model = open_model(tmp_path)
    assert count_flops(model, 8) > 0
    inputs = {"pixel_values": np.zeros((1, 3, 32, 32))} if family == "vit" else {"input_ids": np.ones((1, 4), np.int64)}
    single = {name: array.astype(np.float32) if family == "vit" else array for name, array in inputs.items()}
    assert np.isfinite(TorchRunner(tmp_path).forward(single)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_channels_of_the_model(channels: int, tmp_path: Path) -> None:
    described(tmp_path, "vit", num_channels=channels)
    file = tmp_path / "preprocessor_config.json"
    half = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    file.write_text(json.dumps({**json.loads(file.read_text()), **half}))
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / "grey.png")
    reader = open_images(tmp_path, read_config(tmp_path))
    made = pixels([tmp_path / "grey.png"], reader, "evaluation.data")
    assert made.shape == (1, channels, 32, 32)
    assert made == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "processor", "said"),
    [
        ({"num_channels": 1}, {}, "images of 1 channel, 32 x 32, cannot be used: mean"),
        ({"num_channels": 4}, {}, "num_channels is 4"),
        ({"image_size": 16}, {"size": {"height": 32, "width": 24}}, r"gives \[3, 32, 24\]"),
        ({"num_channels": 1}, {"image_mean": 0.5, "image_std": 0.5, "do_convert_rgb": True}, r"gives \[3, 32, 32\]"),
    ],
)
def test_a_processor_that_does_not_fit_is_named(
    config: dict[str, Any], processor: dict[str, Any], said: str, tmp_path: Path
) -> None:
    described(tmp_path, "vit", **config)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **processor}))
    with pytest.raises(DataError, match=said):
        check_covered(open_model(tmp_path), "onnx", data=True)
