"""Decoders as graphs: one graph for prefill and decode, with a key-value cache per layer.

Inputs: `input_ids [batch, sequence]`, `attention_mask [batch, total]`, the portable form also `position_ids`, and
`past_key_values.N.key / .value [batch, kv_heads, past, head_size]`. Outputs: `logits [batch, sequence, vocabulary]` in
float32 and `present.N.key / .value`. Heads and head size are static and may differ from layer to layer.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.exporters.onnx.attention import (
    CacheShape,
    KeyValue,
    NewTokensCache,
    TracedAttention,
    attention_of,
)
from compressor.exporters.onnx.copying import PortNames
from compressor.exporters.onnx.norms import fused_rms_norms
from compressor.exporters.onnx.prompt import STAND_IN, TracedPrompt, put_in, reductions_in, tracks_of
from compressor.exporters.onnx.repeat import Block, blocks_of, trace_repeating
from compressor.exporters.onnx.rotary import check_rotation, rotary_inside
from compressor.exporters.onnx.trace import BATCH, SEQUENCE, TOTAL, trace

_BATCH, _LENGTH, _PAST = 2, 3, 5  # all different: the tracer takes equal sizes for the same one
_LEFT, _APART = 1000, 40
"""Tokens left behind the first reduction, one more behind each further one; how much longer each past is."""


class _Decoder(nn.Module):
    """Wraps a decoder so that its key-value caches are plain inputs and outputs."""

    def __init__(self, model: nn.Module, attention: TracedAttention) -> None:
        super().__init__()
        self.model = model
        self.attention = attention

    def run(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=NewTokensCache(self.attention),
            use_cache=True,
        )
        logits: Tensor = output.logits
        return logits.to(torch.float32)


class _GroupQueryDecoder(_Decoder):
    """Counts valid tokens instead of looking at the mask; right padding only."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        attention = self.attention
        attention.start(past)
        attention.last_token = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        attention.total = _length_of(attention_mask).to(torch.int32)
        logits = self.run(input_ids, attention_mask, _positions(input_ids, attention_mask))
        return logits, attention.present


class _PortableDecoder(_Decoder):
    """Takes positions as an input; the mask may hide any token."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        attention = self.attention
        attention.start(past)
        attention.mask, attention.positions = attention_mask, position_ids
        return self.run(input_ids, attention_mask, position_ids), attention.present


class _PromptDecoder(_PortableDecoder):
    """One in which image tokens become fewer; `kept` are stand-ins for the places of those that are left."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[KeyValue],
        kept: list[Tensor],
    ) -> tuple[Tensor, list[KeyValue]]:
        tracks = tracks_of(self.model)
        assert tracks is not None, "a block of ours shares them"
        tracks.prompt = TracedPrompt(input_ids, attention_mask, kept)
        return super().forward(input_ids, attention_mask, position_ids, past)


def _length_of(mask: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic("::Shape", [mask], {"start": 1, "end": 2}, dtype=torch.int64, shape=[1])


def _positions(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the positions of the new tokens, the last of those that the mask counts.

    They cannot be derived from the cache: where past and present share a buffer, its length is the buffer's.
    """
    counted = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    end = _length_of(attention_mask)
    start = end - _length_of(input_ids)
    return torch.onnx.ops.symbolic(
        "::Slice", [counted, start, end, torch.tensor([1])], dtype=torch.int64, shape=list(input_ids.shape)
    )


def trace_decoder(model: nn.Module, found: Survey, *, portable: bool, opset: int, dtype: torch.dtype) -> ir.Model:
    """Trace a decoder of transformers, plain or compressed.

    Args:
        model: a `...ForCausalLM`, in eval mode, with parameters on the CPU (their contents are not looked at).
        found: the model's blocks and caches.
        portable: plain operators instead of GroupQueryAttention.
        opset: version of the ONNX operator set.
        dtype: of the parameters, hence of the cache.

    Returns:
        The graph, unoptimised.

    Raises:
        ModelError: the model's attention cannot be expressed, or torch cannot trace it.
    """
    attention = TracedAttention("plain" if portable else "gqa")
    reductions = reductions_in(model)
    kind = (_PromptDecoder if reductions else _PortableDecoder) if portable else _GroupQueryDecoder
    wrapper = kind(model, attention).eval()
    ids = torch.zeros(_BATCH, _LENGTH, dtype=torch.int64)
    mask = torch.ones(_BATCH, _PAST + _LENGTH, dtype=torch.int64)
    new, all_tokens = {0: BATCH, 1: SEQUENCE}, {0: BATCH, 1: TOTAL}

    def trace_some(layers: list[int]) -> ir.Model:
        shapes = [found.caches[index] for index in layers]
        attention.stages = [found.stages[index] for index in layers]
        held = [_PAST + _APART * stage for stage in attention.stages]
        past = [
            tuple(torch.zeros(_BATCH, s.heads, length, s.size, dtype=dtype) for _ in "kv")
            for s, length in zip(shapes, held, strict=True)
        ]
        cache = [({0: BATCH, 2: _numbered("past_sequence_length", stage)},) * 2 for stage in attention.stages]
        kept = [torch.zeros(_LEFT + number, dtype=torch.int64) for number in range(reductions)]
        inputs = (ids, mask, ids.clone(), past) if portable else (ids, mask, past)
        dims = (new, all_tokens, new, cache) if portable else (new, all_tokens, cache)
        if reductions:
            inputs, dims = (*inputs, kept), (*dims, [{0: f"left_{number + 1}"} for number in range(reductions)])
        graph = trace(wrapper, inputs, dims, opset)
        _name_ports(graph.graph, portable, layers, found.stages, reductions)
        return graph

    positions = getattr(model.config, "max_position_embeddings", None) or 0
    with ExitStack() as stack:
        stack.enter_context(attention_of(model, attention))
        stack.enter_context(fused_rms_norms(model))
        if not portable:
            stack.enter_context(rotary_inside(model, attention, int(positions)))
        graph = trace_repeating(model, found.blocks, trace_some, _cache_ports)
    if (tracks := tracks_of(model)) is not None:
        tracks.prompt = None
        put_in(graph.graph)
    _order_ports(graph.graph, len(found.blocks))
    return graph


@dataclass(frozen=True)
class Survey:
    """The blocks of a decoder, and the shapes of their caches."""

    blocks: list[Block]
    caches: list[CacheShape]

    @property
    def stages(self) -> list[int]:
        """For each block how often image tokens have become fewer before it."""
        return [int(getattr(block.module, "stage", 0)) for block in self.blocks]


def survey(model: nn.Module) -> Survey:
    """Return the blocks of a decoder, in call order, from a run that computes nothing.

    Raises:
        ModelError: no attention layer of the model goes through transformers' attention interface, or its rotation
            cannot be exported.
    """
    check_rotation(model.config)
    attention = TracedAttention("record")

    def run() -> None:
        ids = torch.zeros(1, 2, dtype=torch.int64)
        _Decoder(model, attention).run(ids, torch.ones_like(ids), ids)

    with attention_of(model, attention):
        blocks = blocks_of(model, run)
    if len(attention.shapes) != len(blocks):
        raise ModelError(f"{type(model).__name__} has {len(attention.shapes)} attention layers in {len(blocks)} blocks")
    return Survey(blocks, attention.shapes)


def _cache_ports(index: int) -> PortNames:
    """Return the names of the inputs and the outputs that a block reads and makes."""
    parts = ("key", "value")
    return [f"past_key_values.{index}.{part}" for part in parts], [f"present.{index}.{part}" for part in parts]


def _numbered(name: str, stage: int) -> str:
    """Return the name of a dimension in the layers behind a number of reductions of image tokens."""
    return f"{name}_{stage}" if stage else name


def _name_ports(graph: ir.Graph, portable: bool, layers: list[int], stages: list[int], reductions: int) -> None:
    """Give inputs and outputs their names and dimensions; `layers` are those that are there."""
    names = ["input_ids", "attention_mask", *(["position_ids"] if portable else [])]
    caches = [_cache_ports(index) for index in layers]
    held = [name for past, _ in caches for name in past]
    stand_ins = [f"{STAND_IN}{number}" for number in range(reductions)]
    for value, name in zip(graph.inputs, [*names, *held, *stand_ins], strict=True):
        value.name = name
    for value, name in zip(graph.outputs, ["logits", *(n for _, present in caches for n in present)], strict=True):
        value.name = name
    totals = [_numbered(TOTAL, stages[index]) for index in layers for _ in "kv"]
    ports = graph.inputs[len(names) : len(names) + len(held)]
    for value, cache, total in zip(graph.outputs[1:], ports, totals, strict=True):
        value.shape = ir.Shape([BATCH, static_size(cache, 1), total, static_size(cache, 3)])
    graph.outputs[0].shape = ir.Shape([BATCH, SEQUENCE, static_size(graph.outputs[0], 2)])


def _order_ports(graph: ir.Graph, layers: int) -> None:
    """Bring the caches among inputs and outputs in the order of their blocks, behind everything else."""
    inputs, outputs = zip(*(_cache_ports(index) for index in range(layers)), strict=True)
    for ports, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        place = {name: number for number, name in enumerate(name for pair in names for name in pair)}
        values = sorted(ports, key=lambda value: place.get(str(value.name), -1))
        ports.clear()
        ports.extend(values)


def static_size(value: ir.Value, axis: int) -> int:
    """Return a dimension of a graph's input or output that is a number."""
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int), f"{value.name}: dimension {axis} is {size}"
    return size
