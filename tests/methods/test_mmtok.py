"""MMTok: the features that cover a question and an image, in PyTorch, in the graph and in the modelling file."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.data.kinds import Batches
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.remote_code import remote_code
from compressor.measure.benchmark import probe_inputs
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.config import config_for
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.verification import REFERENCE, check_reference, write_reference
from compressor.verification.overlap import check_overlap
from compressor.verification.reference_file import recorded_tensors
from compressor.verification.weights import open_weights
from tests.methods.test_tokens import loaded, pixels, planned
from tests.methods.visual_papers import mmtok

Model = tuple[ModelFolder, ModelFolder, Any]


@pytest.fixture(scope="module")
def model(pico: Callable[..., Path]) -> Model:
    """What is compressed, its plan, and the module."""
    source = open_model(pico("llava_vision"))
    folder = planned(source, "mmtok", {"tokens": 6})
    return source, folder, loaded(source, folder)


def question(source: ModelFolder, batch: int, words: int) -> torch.Tensor:
    width = source.config.projection_size
    return torch.randn(batch, words, width, generator=torch.Generator().manual_seed(words))


def test_what_covers_question_and_image_best_goes_on(model: Model) -> None:
    source, folder, _ = model
    dense, ours = source.load().double(), loaded(source, folder).double()
    images, text = pixels(source, 3).double(), question(source, 3, 4).double()
    text[1, 2:] = 0  # a shorter question
    with torch.no_grad():
        features = dense(pixel_values=images).last_hidden_state
        for given in (text, text[:, :0]):
            found = ours(pixel_values=images, text_features=given).last_hidden_state
            for image, words, kept in zip(features, given, found, strict=True):
                real = words[words.abs().sum(-1) > 0]
                wanted = image[mmtok(image.numpy(), real.numpy(), 6)]
                torch.testing.assert_close(kept, wanted, atol=1e-10, rtol=0)
        nothing = ours(pixel_values=images).last_hidden_state
    torch.testing.assert_close(nothing, found, msg="no question is one of no words")
    assert not torch.equal(ours(pixel_values=images, text_features=text).last_hidden_state, nothing)


def test_the_modelling_file_selects_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder, ours = model
    text, config = remote_code(folder, config_for(source, folder.blueprint, None))
    module = types.ModuleType("modeling_compressed")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(text, "modeling_compressed.py", "exec"), module.__dict__)
    theirs = getattr(module, config["architectures"][0])(module.CompressedConfig.from_dict(config)).eval()
    theirs.load_state_dict(source.load().state_dict())
    images, words = pixels(source, 3), question(source, 3, 5)
    with torch.no_grad():
        for given in (words, None):
            wanted = ours(pixel_values=images, text_features=given).last_hidden_state
            found = theirs(pixel_values=images, text_features=given).last_hidden_state
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_the_graph_reads_a_question_of_any_length_or_none_and_is_verified(model: Model, tmp_path: Path) -> None:
    source, _, ours = model
    method, setting = methods()["mmtok"], Setting(tmp_path / "work", "t", 1 << 28)
    made, _ = apply_pass(method(method.Options(tokens=6)), source, Batches(tuple, 0), setting)
    graph = tmp_path / "graph"
    graph.mkdir()
    export_onnx(made, graph, OnnxOptions())
    runner, images = OnnxRunner(graph), pixels(source, 3)
    for words in (0, 1, 9):
        text = question(source, 3, words)
        with torch.no_grad():
            wanted = ours(pixel_values=images, text_features=text).last_hidden_state.numpy()
        given = {"pixel_values": images.numpy(), "text_features": text.numpy()}
        np.testing.assert_allclose(runner.forward(given), wanted, atol=1e-4)
        alone = {name: array[1:2] for name, array in given.items()}
        np.testing.assert_allclose(runner.forward(alone), wanted[1:2], atol=1e-4)
        if not words:
            np.testing.assert_allclose(runner.forward({"pixel_values": images.numpy()}), wanted, atol=1e-4)
    assert probe_inputs(runner, 2, 0, 0)["text_features"].shape == (2, 16, source.config.projection_size)
    write_reference(TorchRunner(made.path), graph / REFERENCE)
    recorded = recorded_tensors(graph / REFERENCE)
    assert {name for name in recorded if name.endswith("text_features")} == {
        "batch.input.text_features",
        "wide.input.text_features",
    }
    checks = check_reference(runner, graph / REFERENCE)
    checks += check_overlap(open_weights(graph), runner, recorded, "float32", 1)
    assert all(check.passed for check in checks) and "tokens.overlap" in [check.name for check in checks]
