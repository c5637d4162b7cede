"""Attention in plain operators, for encoders and for portable decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None, softcap: float = 0.0
) -> Tensor:
    """Return `softmax(scale * query @ key^T + bias) @ value`, `[batch, sequence, heads, size]`.

    Args:
        query: `[batch, heads, sequence, size]`.
        key: `[batch, kv_heads, total, size]`; each head serves as many query heads as there are for one.
        value: like `key`.
        scale: factor on the scores.
        bias: is added to the scores, `[batch, 1, 1 or sequence, total]`; None for nothing.
        softcap: bound of the scores, `softcap * tanh(scores / softcap)`; 0 for none.
    """
    groups = query.shape[1] // key.shape[1]
    scores = torch.matmul(query, _repeat(key, groups).transpose(2, 3)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    # Asked for the type that it already has, the exporter would cast all scores to it.
    weights = scores.softmax(-1) if scores.dtype == torch.float32 else scores.softmax(-1, torch.float32).to(query.dtype)
    return torch.matmul(weights, _repeat(value, groups)).transpose(1, 2)


def bias_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where `seen` and the lowest number of `dtype` elsewhere; the shape stays."""
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(seen, torch.zeros((), dtype=dtype), hidden)


@dataclass
class EncoderAttention:
    """The attention function of an encoder during a trace: every token sees every valid one, or those before it.

    Attributes:
        bias: `[batch, 1, 1 or sequence, sequence]`, set before the model is called; None where all tokens are valid.
        causal: whether a call asked that tokens see no later ones.
    """

    bias: Tensor | None = None
    causal: bool = False

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend; `attention_mask` is None but where a block of ours weighs tokens: transformers builds none."""
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        self.causal |= bool(kwargs.get("is_causal"))
        return attend(query, key, value, scale, self.bias if attention_mask is None else attention_mask), None


def _repeat(heads: Tensor, times: int) -> Tensor:
    """Repeat each key or value head for the query heads that share it."""
    if times == 1:
        return heads
    batch, count, length, size = heads.shape
    return heads[:, :, None].expand(batch, count, times, length, size).reshape(batch, count * times, length, size)
