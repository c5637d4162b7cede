"""Rotary positions: left to GroupQueryAttention where its kernel can apply them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.exporters.onnx.attention import KeyValue, TracedAttention

_LENGTH_DEPENDENT = ("dynamic", "longrope")


def check_rotation(config: Any) -> None:
    """Refuse rotations that depend on the length of the text: no graph of ours computes them.

    Args:
        config: of a transformers model.

    Raises:
        ModelError: the model has one.
    """
    stated = getattr(config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    for rope in (stated, *stated.values()):
        kind = rope.get("rope_type") if isinstance(rope, dict) else None
        if kind in _LENGTH_DEPENDENT:
            raise ModelError(
                f"config.json: rope_type {kind!r} rotates by the length of the text, which no ONNX graph of ours"
                " computes",
                hint="Set export.format: safetensors, or remove the scaling from config.json where texts are short.",
            )


def _rotaries_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]


@contextmanager
def rotary_inside(model: nn.Module, attention: TracedAttention, positions: int) -> Iterator[bool]:
    """Leave the rotation of queries and keys to GroupQueryAttention, where its kernel can do it.

    The rotary module then returns the cos and sin of *all* positions, and `apply_rotary_pos_emb` passes them on to the
    attention that follows; so each layer gets the tables of its own kind (local and global in Gemma 3).

    Args:
        model: a transformers decoder.
        attention: receives the tables before each call.
        positions: length of the tables.

    Yields:
        Whether the rotation was moved. The kernel wants a rotary half that is a multiple of 8; without rotary modules
        there is nothing to move.
    """
    rotaries = _rotaries_of(model)
    # The kernel wants tables of the type of its queries.
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    tables = [_rotary_table(rotary, positions, dtype) for rotary in rotaries]
    if not tables or any(cos.shape[-1] % 8 for cos, _ in tables):
        yield False
        return

    def hand_over(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> KeyValue:
        attention.tables = (cos, sin)
        return q, k

    files = {type(m).__module__ for m in model.modules()}
    with ExitStack() as stack:
        for rotary, (cos, sin) in zip(rotaries, tables, strict=True):
            stack.enter_context(_buffers(rotary, cos_table=cos, sin_table=sin))
            stack.enter_context(mock.patch.object(rotary, "forward", _tables_of(rotary)))
        for name in sorted(files):
            if hasattr(sys.modules[name], "apply_rotary_pos_emb"):
                stack.enter_context(mock.patch.object(sys.modules[name], "apply_rotary_pos_emb", hand_over))
        yield True


def _tables_of(rotary: nn.Module) -> Any:
    return lambda *args, **kwargs: (rotary.cos_table, rotary.sin_table)


def _rotary_table(rotary: nn.Module, positions: int, dtype: torch.dtype) -> KeyValue:
    """Return cos and sin of positions 0 ... positions-1, each `[positions, rotary / 2]`: the second half repeats it."""
    with torch.no_grad():
        cos, sin = rotary(torch.zeros(1, dtype=dtype), torch.arange(positions)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


@contextmanager
def _buffers(module: nn.Module, **tensors: Tensor) -> Iterator[None]:
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor, persistent=False)
    try:
        yield
    finally:
        for name in tensors:
            delattr(module, name)
