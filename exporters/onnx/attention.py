"""Attention of a decoder while its graph is traced: GroupQueryAttention, or plain operators.

Transformers looks the attention function up by name, and leaves the mask out for a name that its mask registry does not
know. So both forms below are entered under a private name for the time of the trace, and build what they need from the
graph's own inputs: `GroupQueryAttention` from the number of valid tokens, the portable form from the 2-D mask.

Head counts always come from the tensors, never from the configuration: a compressed model has other ones in each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compressor.errors import ModelError
from compressor.exporters.onnx.plain import attend, bias_of

KeyValue = tuple[Tensor, Tensor]
_NAME = "compressor_traced_attention"
_UNSUPPORTED = ("s_aux", "position_bias", "head_mask")


@dataclass(frozen=True)
class CacheShape:
    """Cache of one layer: `[batch, heads, past, size]` for keys and for values."""

    heads: int
    size: int


class NewTokensCache(Cache):
    """A cache that hands the new keys and values back alone: joining them with the past is the attention's work."""

    def __init__(self, attention: TracedAttention) -> None:
        """Start without layers: nothing is stored; `attention` joins what is new with the past."""
        super().__init__(layers=[])
        self._attention = attention

    def joined_keys(self) -> Tensor:
        """Return the keys of past and new tokens of the layer that was called last."""
        return self._attention.present[-1][0]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeyValue:
        """Return the new keys and values as they are."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given to the model, never derived from the cache."""
        return 0


@dataclass
class TracedAttention:
    """The attention function that the model calls during a trace, and what it shares with the wrapper around it.

    Attributes:
        form: `record` notes the cache shapes and computes nothing, `gqa` emits com.microsoft GroupQueryAttention,
            `plain` emits MatMul and Softmax.
        past: keys and values so far, one pair per attention layer in call order.
        present: filled by the calls, in the same order.
        mask: 2-D attention mask `[batch, total]`.
        positions: positions of the new tokens, `[batch, sequence]` (plain).
        last_token: int32 `[batch]`, index of the last valid token (gqa).
        total: int32 `[1]`, length of the mask (gqa).
        tables: cos and sin of every position, `[positions, rotary / 2]`, of the layer about to be called; None when
            the queries and keys are rotated already, or never.
        stages: for each attention layer in call order how often tokens have become fewer before it; none where they
            never do.
        shapes: filled by `record`.
        biases: masks by stage and window, shared by the layers (plain).
    """

    form: Literal["record", "gqa", "plain"]
    past: list[KeyValue] = field(default_factory=list)
    present: list[KeyValue] = field(default_factory=list)
    mask: Tensor | None = None
    positions: Tensor | None = None
    last_token: Tensor | None = None
    total: Tensor | None = None
    tables: KeyValue | None = None
    stages: list[int] = field(default_factory=list)
    shapes: list[CacheShape] = field(default_factory=list)
    biases: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def start(self, past: list[KeyValue]) -> None:
        """Forget the last call of the model."""
        self.past, self.present, self.biases, self.tables = past, [], {}, None

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend from the new tokens to past and new ones.

        Args:
            module: the attention module (for its name in errors).
            query: `[batch, heads, sequence, size]`.
            key: `[batch, kv_heads, sequence, size]`, new tokens only.
            value: like `key`.
            attention_mask: ignored; it is None for an attention function that transformers does not know.
            scaling: factor on the scores; 1/sqrt(size) if not given.
            sliding_window: number of last tokens, itself included, that a token sees; None for all.
            softcap: bound of the scores, `softcap * tanh(scores / softcap)`; None for none.
            **kwargs: options of other attention functions.

        Returns:
            The attended values `[batch, sequence, heads, size]`, and None for the weights.

        Raises:
            ModelError: the layer asks for something that neither form can express.
        """
        for name in _UNSUPPORTED:
            if kwargs.get(name) is not None:
                raise ModelError(f"{type(module).__name__} uses `{name}`, which the ONNX exporter does not cover")
        if key.shape[-1] != value.shape[-1]:
            raise ModelError(f"{type(module).__name__}: keys of size {key.shape[-1]}, values of {value.shape[-1]}")
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        if self.form == "record":
            self.shapes.append(CacheShape(heads=int(key.shape[1]), size=int(key.shape[3])))
            return query.transpose(1, 2), None
        form = self._group_query if self.form == "gqa" else self._plain
        return form(query, key, value, scale, sliding_window or 0, softcap or 0.0), None

    def _group_query(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
    ) -> Tensor:
        batch, heads, length, size = query.shape
        kv_heads = key.shape[1]
        past_key, past_value = self.past[len(self.present)]
        cos, sin = self.tables if self.tables is not None else (None, None)
        self.tables = None
        cache = (batch, kv_heads, past_key.shape[2] + length, size)
        output, new_key, new_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [_flat(query), _flat(key), _flat(value), past_key, past_value, self.last_token, self.total, cos, sin],
            {
                "num_heads": heads,
                "kv_num_heads": kv_heads,
                "do_rotary": int(cos is not None),
                "scale": scale,
                "local_window_size": window or -1,
                "softcap": softcap,
            },
            dtypes=(query.dtype, key.dtype, value.dtype),
            shapes=((batch, length, heads * size), cache, cache),
            version=1,
        )
        self.present.append((new_key, new_value))
        return output.reshape(batch, length, heads, size)

    def _plain(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float) -> Tensor:
        stage = self.stages[len(self.present)] if self.stages else 0
        past_key, past_value = self.past[len(self.present)]
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        self.present.append((key, value))
        if (stage, window) not in self.biases:
            mask = self.mask if stage == 0 else self._mask_of_those_left(key)
            self.biases[stage, window] = self._bias(query, mask, window)
        return attend(query, key, value, scale, self.biases[stage, window], softcap)

    def _mask_of_those_left(self, key: Tensor) -> Tensor:
        """Return the mask of the keys `[batch, heads, tokens left, size]`: what went stood before all that it hides."""
        assert self.mask is not None
        # From the lengths of inputs alone: what is computed in one block would make it unlike the others.
        return self.mask.index_select(1, torch.arange(key.shape[2]) + (self.mask.shape[1] - key.shape[2]))

    def _bias(self, query: Tensor, mask: Tensor | None, window: int) -> Tensor:
        """Return 0 where a new token sees a token and the type's minimum elsewhere: `[batch, 1, sequence, total]`."""
        assert mask is not None
        total, length = mask.shape[1], query.shape[2]
        keys = torch.arange(total)[None, :]
        queries = (total - length + torch.arange(length))[:, None]
        seen = keys <= queries
        seen = seen[None, None] & mask[:, None, None, :].bool()
        if window:
            assert self.positions is not None
            # Padding between two tokens does not put them farther apart: positions count, not places.
            held = mask.cumsum(dim=1)[:, None, None, :] - 1
            seen = seen & (held > self.positions[:, None, :, None] - window)
        return bias_of(seen, query.dtype)


@contextmanager
def attention_of(model: nn.Module, attention: Callable[..., Any]) -> Iterator[None]:
    """Let `model` call `attention`, and undo it afterwards.

    Args:
        model: a transformers decoder.
        attention: the function to call.
    """
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values()
    before = [(config, config._attn_implementation) for config in configs]
    ALL_ATTENTION_FUNCTIONS[_NAME] = attention
    try:
        for config, _ in before:
            config._attn_implementation = _NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
        del ALL_ATTENTION_FUNCTIONS[_NAME]


def _flat(heads: Tensor) -> Tensor:
    """`[batch, heads, sequence, size]` to `[batch, sequence, heads * size]`."""
    batch, count, length, size = heads.shape
    return heads.transpose(1, 2).reshape(batch, length, count * size)
