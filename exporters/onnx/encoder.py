"""Encoders and image models as graphs: attention in plain operators, dynamic batch and length.

A text encoder takes `input_ids`, `attention_mask` (but where it reads padding like any token) and, where it has token
types, `token_type_ids`, all `[batch, sequence]`; an image model takes `pixel_values [batch, channels, height, width]`
of static size, and `text_features [batch, sequence, width]` where features are chosen for a question. The output is
`logits` for a model with a classification head, and `last_hidden_state` otherwise; behind it comes the embedding of the
whole sample, where the family pools by itself. Families may give hidden states another name.

A graph in which image tokens go keeps the names of the values that say which go on: `kept_tokens.BLOCK`, or
`kept_tokens.output` [batch, kept], places in the sequence before. On request it has one output more, `kept_mask`
[batch, reductions, tokens]: which of the tokens before the first block are still there behind each reduction, in the
order in which they happen.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from compressor.architectures import family_of
from compressor.errors import ModelError
from compressor.exporters.onnx.attention import attention_of
from compressor.exporters.onnx.norms import fused_rms_norms
from compressor.exporters.onnx.plain import EncoderAttention, bias_of
from compressor.exporters.onnx.repeat import Block, blocks_of, trace_repeating
from compressor.exporters.onnx.trace import BATCH, SEQUENCE, trace
from compressor.model.blueprint import Reduction
from compressor.model.reduced import reductions_of, told
from compressor.model.token_output import BY_TEXT
from compressor.model.token_places import KEPT, kept_name
from compressor.model.token_scores import Seen
from compressor.model.token_select import Choice

_BATCH, _LENGTH = 2, 7
_OUTPUTS = ("logits", "last_hidden_state")
KEPT_MASK = "kept_mask"
TEXT = "text_features"


class _Encoder(nn.Module):
    """An encoder with named inputs and outputs in a row."""

    def __init__(
        self, model: nn.Module, attention: EncoderAttention, inputs: list[str], outputs: list[str], kept_mask: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        self.inputs = inputs
        self.outputs = outputs
        self.kept_mask = kept_mask
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.inputs, tensors, strict=True))
        if (mask := inputs.get("attention_mask")) is not None:
            seen = mask[:, None, None, :].bool()
            if self.attention.causal:
                places = torch.arange(mask.shape[1])
                seen = seen & (places[None, :] <= places[:, None])
            self.attention.bias = bias_of(seen, self.dtype)
        choices = _Choices()
        with told(self.model, choices) if "pixel_values" in inputs else nullcontext():
            result = self.model(**inputs)
        found = [*(result[name].to(torch.float32) for name in self.outputs), *choices.kept]
        return (*found, choices.mask()) if self.kept_mask else tuple(found)


class _Choices:
    """Which tokens go on, reduction by reduction.

    Attributes:
        kept: places in the sequence before each, [batch, kept].
    """

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self._made: list[Tensor] = []
        self._tokens = 0
        self._places: Tensor | None = None

    def __call__(self, reduction: Reduction, choice: Choice, seen: Seen) -> None:
        kept = choice.kept
        if self._places is None:
            self._tokens = seen.keys.shape[1]
            self._places = torch.arange(self._tokens).expand(kept.shape[0], -1)
        self.kept.append(kept)
        stay = self._places.gather(1, kept)
        self._made.append((stay.unsqueeze(2) == torch.arange(self._tokens)).any(1))
        # a token that is made of several stands where none of the first did
        self._places = nn.functional.pad(stay, (0, reduction.keep - kept.shape[1]), value=self._tokens)

    def mask(self) -> Tensor:
        return torch.stack(self._made, dim=1)


def trace_encoder(model: nn.Module, *, opset: int, dtype: torch.dtype, kept_mask: bool = False) -> ir.Model:
    """Trace a text encoder, a text classifier or an image classifier of transformers.

    Args:
        model: in eval mode, with parameters on the CPU (their contents are not looked at).
        opset: version of the ONNX operator set; 20 is the first with Gelu.
        dtype: of the parameters, hence of `pixel_values`.
        kept_mask: whether the graph of a model in which tokens go says which are left.

    Returns:
        The graph, unoptimised; `name_choices` belongs behind the optimiser.

    Raises:
        ModelError: the model has neither kind of output, or torch cannot trace it.
    """
    inputs = example_inputs(model, dtype)
    attention = EncoderAttention()
    with attention_of(model, attention), fused_rms_norms(model):
        outputs, blocks = _survey(model, inputs)
        reduced = reductions_of(model) if "pixel_values" in inputs else []
        names = [*outputs, *map(kept_name, reduced)]
        names += [KEPT_MASK] if kept_mask and reduced else []
        wrapper = _Encoder(model, attention, list(inputs), outputs, kept_mask and bool(reduced)).eval()
        all_dims = (tuple({0: BATCH} if name == "pixel_values" else {0: BATCH, 1: SEQUENCE} for name in inputs),)
        graph = trace_repeating(
            model, blocks, lambda _: trace(wrapper, tuple(inputs.values()), all_dims, opset), lambda _: ([], [])
        )
    for value, name in zip(graph.graph.inputs, inputs, strict=True):
        value.name = name
    hidden = family_of(model.config).output
    for value, name in zip(graph.graph.outputs, names, strict=True):
        value.name = hidden if name == _OUTPUTS[1] else name
    return graph


def name_choices(graph: ir.Graph) -> None:
    """Turn the outputs that say which tokens go on into values of the same names inside of the graph."""
    graph.outputs[:] = [value for value in graph.outputs if not str(value.name).startswith(KEPT)]


def example_inputs(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return example inputs in the order in which the graph takes them."""
    config: Any = model.config
    if getattr(model, "main_input_name", "") == "pixel_values":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.zeros(_BATCH, config.num_channels, height, width, dtype=dtype)
        if any(reduction.select in BY_TEXT for reduction in reductions_of(model)):
            return {"pixel_values": pixels, TEXT: torch.zeros(_BATCH, _LENGTH, config.projection_size, dtype=dtype)}
        return {"pixel_values": pixels}
    ids = torch.zeros(_BATCH, _LENGTH, dtype=torch.int64)
    if family_of(config).full_length:
        return {"input_ids": ids}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    accepted = inspect.signature(model.forward).parameters
    if "token_type_ids" in accepted and bool(getattr(config, "type_vocab_size", 0)):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs


def _survey(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[str], list[Block]]:
    """Return the names of the outputs and the blocks, from a run that computes nothing."""
    results: list[Any] = []
    blocks = blocks_of(model, lambda: results.append(model(**inputs)))
    found = [name for name in _OUTPUTS if getattr(results[0], name, None) is not None]
    if not found:
        raise ModelError(f"{type(model).__name__} returns neither {' nor '.join(_OUTPUTS)}")
    pooled = [name for name in family_of(model.config).pooled if results[0].get(name) is not None]
    return [found[0], *(pooled[:1] if found[0] == "last_hidden_state" else [])], blocks
