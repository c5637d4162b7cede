"""`full_length`: image tokens that go come back behind the last block, each as the one that stands for it then."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.data.kinds import Batches
from compressor.errors import UsageError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.remote_code import remote_code
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.config import config_for
from compressor.model.folder import ModelFolder, open_model
from compressor.model.reduced import told
from compressor.walk import Walk
from tests.methods.test_tokens import loaded, pixels, planned

Pico = Callable[..., Path]
METHODS: dict[str, dict[str, Any]] = {
    "tome": {"r": 3, "layers": [1, 2]},
    "evit": {"keep": 0.6, "layers": [1, 2]},
    "diffrate": {"r": 4, "layers": [2], "merged": 0.5},
}
EARLY: dict[str, Any] = {"keep": 0.6, "layers": [1, 2]}


@pytest.fixture(scope="module")
def source(pico: Pico) -> ModelFolder:
    """A model that hands on the features of every patch, with registers, and a block behind the last reduction."""
    return open_model(pico("dinov2_with_registers"))


def features(module: Any, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(module(pixel_values=images).last_hidden_state)


def stand_ins(module: Any, images: torch.Tensor, first: int) -> list[list[int]]:
    """Return, for every sample and first token, the place of the one that stands for it, found choice by choice."""
    homes = [[{token} for token in range(first)] for _ in images]
    fused: list[bool] = []

    def hear(reduction: Any, choice: Any, _: Any) -> None:
        for row, groups in enumerate(homes):
            after = [set(groups[place]) for place in choice.kept[row].tolist()]
            if reduction.dropped == "fuse":
                after.append(set().union(*(groups[place] for place in choice.gone[row].tolist())))
            elif choice.into is not None:
                for place, into in zip(choice.gone[row].tolist(), choice.into[row].tolist(), strict=True):
                    after[into] |= groups[place]
            homes[row] = after
        fused.append(True)

    with told(module, hear):
        features(module, images)
    assert fused
    return [[next((i for i, g in enumerate(gs) if t in g), -1) for t in range(first)] for gs in homes]


@pytest.mark.parametrize("name", METHODS)
def test_every_token_stands_again_as_the_one_that_stands_for_it(source: ModelFolder, name: str) -> None:
    short, full = (
        loaded(source, planned(source, name, {**METHODS[name], **more})) for more in ({}, {"full_length": True})
    )
    images = pixels(source, 2)
    dense, few, all_of_them = (features(module, images) for module in (source.load(), short, full))
    assert few.shape[1] < dense.shape[1] and all_of_them.shape == dense.shape
    homes = stand_ins(short, images, dense.shape[1])
    lost = 0
    for row, places in enumerate(homes):
        for token, place in enumerate(places):
            if place >= 0:
                np.testing.assert_allclose(all_of_them[row, token], few[row, place], atol=1e-6)
            lost += place < 0
    assert (lost > 0) == (name == "diffrate"), "what is dropped has the mean of the others"


def test_tokens_that_leave_early_come_back_as_they_left(source: ModelFolder) -> None:
    """In float64, block by block and image by image, against the stream that enters each FFN."""
    folder = planned(source, "dtop", EARLY)
    module, images = loaded(source, folder).double(), pixels(source, 2).double()
    choices: list[Any] = []
    entering: list[torch.Tensor] = []
    for block in module.encoder.layer:
        block.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with told(module, lambda _, choice, seen: choices.append(choice)):
        found = features(module, images)
    first, count = entering[0].shape[1], len(images)
    wanted, places = np.zeros((count, first, found.shape[-1])), [list(range(first)) for _ in images]
    for index, (block, x) in enumerate(zip(module.encoder.layer, entering, strict=True)):
        normed = block.norm1(x)
        scale = block.layer_scale1.lambda1 if hasattr(block, "layer_scale1") else 1.0
        middle = (x + block.attention(normed)[0] * scale).detach().numpy()
        for row, choice in enumerate(zip(choices[index].kept, choices[index].gone, strict=True) if index < 2 else ()):
            kept, gone = (part.tolist() for part in choice)
            for place in gone:
                wanted[row, places[row][place]] = middle[row, place]
            places[row] = [places[row][place] for place in kept]
    assert all(len(left) < first for left in places)
    ended = module.layernorm(torch.from_numpy(wanted)).detach().numpy()
    for row, left in enumerate(places):
        gone = [token for token in range(first) if token not in left]
        np.testing.assert_allclose(found[row, gone], ended[row, gone], atol=1e-9)
        assert np.abs(found[row, left] - ended[row, left]).min() > 1e-6, "those that stayed went through all blocks"


def test_tokens_are_recovered_from_those_that_were_like_them(source: ModelFolder) -> None:
    """In float64: shares by a softmax of cosines of keys, followed token by token, of what a plain drop leaves."""
    folder = planned(source, "hot", {**EARLY, "temperature": 0.2})
    plain = tuple(replace(r, dropped="drop", returns=False, temperature=0.0) for r in folder.blueprint.reductions)
    dropping = loaded(source, source.with_blueprint(replace(source.blueprint, reductions=plain))).double()
    images = pixels(source, 2).double()
    heard: list[Any] = []
    left: list[torch.Tensor] = []
    dropping.encoder.layer[-1].register_forward_hook(lambda _, __, out: left.append(out))
    with told(dropping, lambda reduction, choice, seen: heard.append((reduction.protect, choice, seen.keys.mean(2)))):
        features(dropping, images)
    found = features(loaded(source, folder).double(), images)
    for row in range(len(images)):
        parts = [{token: 1.0} for token in range(found.shape[1])]
        for protect, choice, keys in heard:
            kept, unit = choice.kept[row].tolist(), (keys[row] / keys[row].norm(dim=-1, keepdim=True)).numpy()
            taking = {}
            for gone in choice.gone[row].tolist():
                weights = {k: np.exp(unit[gone] @ unit[k] / 0.2) for k in kept[protect:]}
                taking[gone] = {k: weight / sum(weights.values()) for k, weight in weights.items()}
            for part in parts:
                for gone in [token for token in part if token in taking]:
                    share = part.pop(gone)
                    for k, weight in taking[gone].items():
                        part[k] = part.get(k, 0.0) + share * weight
            parts = [{kept.index(k): share for k, share in part.items()} for part in parts]
        wanted = torch.stack([sum(share * left[0][row, k] for k, share in part.items()) for part in parts])
        np.testing.assert_allclose(found[row], dropping.layernorm(wanted).detach().numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [("tome", {**METHODS["tome"], "full_length": True}), ("dtop", EARLY), ("hot", EARLY)],
)
def test_graph_modelling_file_and_walk_give_the_same(
    source: ModelFolder, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    folder = planned(source, name, options)
    module, images = loaded(source, folder), pixels(source, 3)
    wanted = features(module, images)
    export_onnx(folder, tmp_path, OnnxOptions())
    np.testing.assert_allclose(OnnxRunner(tmp_path).forward({"pixel_values": images.numpy()}), wanted, atol=1e-4)

    batches = Batches(lambda: [{"pixel_values": images.numpy()}], 1)
    walk = Walk(folder, batches, work=tmp_path / "walk", cache_bytes=1 << 28)
    with torch.no_grad():
        for _ in walk.survey("walk", keep=True):
            continue
        ended = module.layernorm(walk.streams.ends[0].restored(walk.dense[0]))
    np.testing.assert_allclose(ended, wanted, atol=1e-5)

    text, config = remote_code(folder, config_for(source, folder.blueprint, None))
    code = types.ModuleType("modeling_compressed")
    exec(compile(text, "modeling_compressed.py", "exec"), code.__dict__)
    model = getattr(code, config["architectures"][0])(code.CompressedConfig.from_dict(config)).eval()
    model.load_state_dict(source.load().state_dict())
    np.testing.assert_allclose(features(model, images), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("clca", {"keep": 0.7}, "dropped cache leaves nothing"),
        ("token-transforming", {"keep": 0.7}, "dropped transform leaves nothing"),
        ("dtop", {"keep": 0.7, "head_only": True}, "head_only"),
    ],
)
def test_what_leaves_no_stand_in_is_refused(source: ModelFolder, name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        planned(source, name, {**options, "full_length": True})
