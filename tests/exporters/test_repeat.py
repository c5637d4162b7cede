"""Blocks that are alike are copied from two that were traced, and only then."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.exporters.session import Decoder, stock
from tests.exporters.test_decoder import check_parity

pytestmark = pytest.mark.usefixtures("traced_anew")


def blocks(kinds: str, widths: list[int] | None = None, **changes: Any) -> list[Any]:
    """Return one block for each letter, with weights of these widths."""
    from torch import nn

    from compressor.exporters.onnx.repeat import Block

    widths = widths or [8] * len(kinds)
    whole = Block("", nn.Identity(), "", (), keeps_width=True)
    return [replace(whole, kind=k, shapes=((w,),), **changes) for k, w in zip(kinds, widths, strict=True)]


def test_the_first_and_the_last_of_a_kind_are_traced_and_one_of_another_shape() -> None:
    from compressor.exporters.onnx.repeat import repeats

    assert repeats(blocks("aaaaa")) == [0, 0, 0, 0, 4]
    assert repeats(blocks("a")) == [0] and repeats(blocks("aa")) == [0, 1]
    assert repeats(blocks("abababab")) == [0, 1, 0, 1, 0, 1, 6, 7]
    assert repeats(blocks("aaaaaa", [8, 8, 5, 5, 3, 8])) == [0, 0, 2, 2, 0, 5]
    assert repeats(blocks("aaaa", keeps_width=False)) == [0, 1, 2, 3]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "opt", "bert", "vit", "dinov2"])
def test_blocks_of_every_family_are_alike(pico: Callable[..., Path], family: str) -> None:
    import torch

    from compressor.exporters.onnx.decoder import survey
    from compressor.exporters.onnx.encoder import example_inputs
    from compressor.exporters.onnx.repeat import blocks_of, repeats
    from compressor.exporters.onnx.weights import weightless
    from compressor.model.folder import open_model

    source = open_model(pico(family, num_hidden_layers=4))
    model = source.skeleton()
    with weightless(model, source.weights, torch.float32):
        if source.task == "text-generation":
            found = survey(model).blocks
        else:
            inputs = example_inputs(model, torch.float32)
            found = blocks_of(model, lambda: model(**inputs))
    assert repeats(found) == [0, 0, 0, 3]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The blocks of each trace of a decoder."""
    from compressor.exporters.onnx import decoder

    seen: list[list[int]] = []
    whole = decoder.trace_repeating

    def noting(model: Any, found: Any, trace: Callable[[list[int]], Any], ports: Any) -> Any:
        def note(layers: list[int]) -> Any:
            seen.append(layers)
            return trace(layers)

        return whole(model, found, note, ports)

    monkeypatch.setattr(decoder, "trace_repeating", noting)
    return seen


@pytest.mark.parametrize("graph", ["auto", pytest.param("portable", marks=pytest.mark.exhaustive)])
def test_blocks_of_any_width_are_copied(
    pico: Callable[..., Path], tmp_path: Path, traced: list[list[int]], graph: Any
) -> None:
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.model.folder import load, open_model
    from tests.exporters.conftest import write_shaped

    base = pico("llama", head_dim=16, num_hidden_layers=6)
    source = write_shaped(base, tmp_path / "source", [{"intermediate_size": w} for w in (100, 77, 33, 77, 50, 64)])
    (out := tmp_path / "out").mkdir()
    export_onnx(open_model(source), out, OnnxOptions(graph=graph))
    assert traced == [[0, 1, 5]]
    decoder = Decoder(out)
    caches = [f"{index}.{part}" for index in range(6) for part in ("key", "value")]
    assert [port.name for port in decoder.cache] == [f"past_key_values.{cache}" for cache in caches]
    assert [port.name for port in decoder.session.get_outputs()] == ["logits", *(f"present.{c}" for c in caches)]
    check_parity(load(source), decoder)


def test_blocks_that_compute_by_their_place_are_all_traced(
    pico: Callable[..., Path], tmp_path: Path, traced: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    whole = LlamaAttention.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out, weights = whole(self, *args, **kwargs)
        return out / (1 + self.layer_idx), weights

    monkeypatch.setattr(LlamaAttention, "forward", scaled)
    source = pico("llama", head_dim=16, num_hidden_layers=4)
    export_onnx(open_model(source), tmp_path)
    assert traced == [[0, 3], [0, 1, 2, 3]]
    check_parity(stock(source), Decoder(tmp_path))


def test_copies_are_what_a_trace_gives(
    pico: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied or traced, the graph is the same but for the names of constants."""
    from compressor.exporters.onnx import export_onnx, repeat
    from compressor.model.folder import open_model

    source = open_model(pico("qwen2", hidden_size=96, num_hidden_layers=5))
    graphs = []
    for way in (repeat.repeats, lambda blocks: list(range(len(blocks)))):
        monkeypatch.setattr(repeat, "repeats", way)
        (out := tmp_path / str(len(graphs))).mkdir()
        export_onnx(source, out)
        graphs.append(onnx.load(out / "model.onnx").graph)
    copied, traced = ([*graph.input, *graph.output, *_described(graph)] for graph in graphs)
    assert len(copied) > 60 and copied == traced


def _described(graph: onnx.GraphProto) -> list[Any]:
    """Return all nodes, with the contents of the initializers that they read in the place of their names."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    found: list[Any] = []
    for node in graph.node:
        read = [(held[name].raw_data, tuple(held[name].dims)) if name in held else name for name in node.input]
        attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
        found.append((node.name, node.op_type, node.domain, read, list(node.output), attributes))
    return found


@pytest.mark.parametrize("alike", [True, False])
def test_blocks_with_other_buffers_are_of_other_kinds(
    pico: Callable[..., Path], tmp_path: Path, traced: list[list[int]], monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaMLP

    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    make, whole = LlamaMLP.__init__, LlamaMLP.forward
    places = itertools.cycle([0] * 4 if alike else range(4))

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.register_buffer("gain", torch.linspace(0.5, 2 + next(places), 48), persistent=False)

    monkeypatch.setattr(LlamaMLP, "__init__", made)
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: whole(self, x) * self.gain)
    source = open_model(pico("llama", head_dim=16, num_hidden_layers=4))
    export_onnx(source, tmp_path)
    assert traced == [[0, 3] if alike else [0, 1, 2, 3]]
    check_parity(source.load(), Decoder(tmp_path))


@pytest.mark.parametrize("graph", ["auto", pytest.param("portable", marks=pytest.mark.exhaustive)])
def test_blocks_with_and_without_a_window_are_two_kinds(
    pico: Callable[..., Path], tmp_path: Path, traced: list[list[int]], graph: Any
) -> None:
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.model.folder import open_model

    windows = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}
    source = pico("qwen2", hidden_size=96, num_hidden_layers=7, **windows)
    export_onnx(open_model(source), tmp_path, OnnxOptions(graph=graph))
    assert traced == [[0, 2, 3, 6]]
    check_parity(stock(source), Decoder(tmp_path))
