"""Modules of the true shapes, without weights.

A skeleton is the stock transformers module with its parameters on the meta device, resized by the family's table to the
shapes that config.json states. Blocks with shortcuts (SliceGPT, rotation per layer) get a forward of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from compressor.architectures import Family, LayerShape, Shapes
from compressor.architectures.tasks import TASKS
from compressor.errors import ModelError


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While active, modules register their parameters on the meta device; buffers stay real."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_skeleton(config: PretrainedConfig, family: Family, task: str, shapes: Shapes) -> PreTrainedModel:
    """Return the model of `config` with meta parameters of the true `shapes`, in eval mode."""
    with parameters_on_meta():
        auto = getattr(transformers, TASKS[task].auto_class)
        model: PreTrainedModel = auto.from_config(config, attn_implementation="sdpa")
    model.requires_grad_(False)
    resize(model, family, shapes)
    if shapes.tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.eval()
    return model


def base_of(model: PreTrainedModel) -> nn.Module:
    """Return the model below the task head (the model itself where there is no head)."""
    base = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    return base if isinstance(base, nn.Module) else model


def base_prefix(model: PreTrainedModel) -> str:
    """Return the name that `base_of(model)` has in the model, with a dot, or an empty string."""
    return "" if base_of(model) is model else f"{model.base_model_prefix}."


def submodule(root: nn.Module, path: str) -> Any:
    """Return the submodule at a dotted path."""
    return root.get_submodule(path)


def optional_submodules(root: nn.Module, paths: tuple[str, ...]) -> list[nn.Module]:
    """Return those of `paths` that exist in `root`."""
    names = {name for name, _ in root.named_modules()}
    return [root.get_submodule(path) for path in paths if path in names]


def set_weight(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Give a linear, embedding, convolution or norm module a new weight, and bring its size attributes in line.

    A bias of None leaves the bias as it is.
    """
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)


def _resized(module: Any, dims: tuple[int | None, int | None]) -> None:
    """Give a module a meta weight of (out, in); None keeps a side. Norms and embeddings take their one width first."""
    out, inner = dims
    weight = module.weight
    shape = list(weight.shape)
    if isinstance(module, nn.Embedding):
        shape[1] = out if out is not None else shape[1]
    else:
        shape[0] = out if out is not None else shape[0]
        if inner is not None:
            shape[1] = inner
    if shape == list(weight.shape):
        return
    bias = getattr(module, "bias", None)
    meta = torch.empty(shape, device="meta", dtype=weight.dtype)
    new_bias = None if bias is None else torch.empty(shape[0], device="meta", dtype=bias.dtype)
    set_weight(module, meta, new_bias)


def resize(model: PreTrainedModel, family: Family, shapes: Shapes) -> None:
    """Bring every weight of a skeleton to `shapes`, in place.

    Raises:
        ModelError: the family stacks matrices in a way that per-layer widths cannot describe.
    """
    base = base_of(model)
    first = shapes.layers[0].residual[0] if shapes.layers else shapes.hidden_size
    last = shapes.layers[-1].residual[2] if shapes.layers else shapes.hidden_size
    for module in optional_submodules(base, family.embeddings):
        _resized(module, (first, None))
    for path in family.embedding_biases:
        _resize_vector(base, path, first)
    if family.final_norm:
        _resized(submodule(base, family.final_norm), (last, None))
    for module in optional_submodules(model, family.heads):
        if not shapes.tied:
            _resized(module, (None, last))
    blocks = submodule(base, family.blocks)
    for index, layer in enumerate(shapes.layers):
        resize_block(blocks[index], family, layer, shapes.head_dim)
        if shapes.shortcuts:
            blocks[index] = ShortcutBlock(blocks[index], family, layer)


def _resize_vector(base: nn.Module, path: str, width: int) -> None:
    parent, _, name = path.rpartition(".")
    holder = base.get_submodule(parent)
    vector = getattr(holder, name, None)
    if vector is not None and vector.shape[-1] != width:
        shape = (*vector.shape[:-1], width)
        setattr(holder, name, nn.Parameter(torch.empty(shape, device="meta", dtype=vector.dtype), requires_grad=False))


def resize_block(block: nn.Module, family: Family, layer: LayerShape, head_dim: int) -> None:
    """Bring one block's weights to the widths of `layer`; head counts are told to the attention module."""
    attention, ffn = family.attention, family.ffn
    before, middle, after = layer.residual
    norms = (before, middle) if family.residual != "post" else (middle, after)
    _resized(submodule(block, attention.norm), (norms[0], None))
    _resized(submodule(block, ffn.norm), (norms[1], None))
    heads, groups = layer.num_attention_heads, layer.num_key_value_heads
    if attention.layout != "separate" or any(slot.parts > 1 for slot in ffn.readers):
        raise ModelError(f"family {family.name}: fused projections cannot be resized per layer yet")
    for slot, count in ((attention.query, heads), (attention.key, groups), (attention.value, groups)):
        _resized(submodule(block, slot.path), (count * head_dim, before))
    _resized(submodule(block, attention.output), (middle, heads * head_dim))
    for path in ffn.reader_paths:
        _resized(submodule(block, path), (layer.intermediate_size, middle))
    _resized(submodule(block, ffn.writer), (after, layer.intermediate_size))
    module = submodule(block, attention.module)
    if hasattr(module, "num_key_value_groups"):
        module.num_key_value_groups = heads // groups
    if family.head_count_attributes[0] and hasattr(module, family.head_count_attributes[0]):
        setattr(module, family.head_count_attributes[0], heads)


class ShortcutBlock(nn.Module):
    """A pre-norm block whose residual stream changes width: x·S₁ + attention, then ·S₂ + FFN (SliceGPT, figure 4).

    The children of the stock block keep their names, so tensors are called as in the stock model; `attention_shortcut`
    and `ffn_shortcut` are new.
    """

    def __init__(self, block: nn.Module, family: Family, layer: LayerShape) -> None:
        """Adopt the children of `block`; the shortcuts are [middle, before] and [after, middle] matrices."""
        super().__init__()
        if family.residual != "pre":
            raise ModelError(f"family {family.name}: shortcuts need norms before attention and FFN")
        for name, child in block.named_children():
            self.add_module(name, child)
        before, middle, after = layer.residual
        with torch.device("meta"):
            self.attention_shortcut = nn.Linear(before, middle, bias=False)
            self.ffn_shortcut = nn.Linear(middle, after, bias=False)
        self.requires_grad_(False)
        self._family = family

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the block on hidden_states [batch, tokens, before]; return [batch, tokens, after]."""
        attention, ffn = self._family.attention, self._family.ffn
        normed = self.get_submodule(attention.norm)(hidden_states)
        attended = self.get_submodule(attention.module)(normed, *args, **kwargs)[0]
        hidden_states = self.attention_shortcut(hidden_states) + attended
        normed = self.get_submodule(ffn.norm)(hidden_states)
        written: torch.Tensor = run_ffn(self, self._family, normed)
        return torch.as_tensor(self.ffn_shortcut(hidden_states) + written)


def run_ffn(block: nn.Module, family: Family, normed: torch.Tensor) -> torch.Tensor:
    """Return the FFN's output for its normed input [..., hidden], before the residual sum."""
    ffn = family.ffn
    if ffn.module is not None:
        return torch.as_tensor(block.get_submodule(ffn.module)(normed))
    if ffn.activation is None or ffn.gated:
        raise ModelError(f"family {family.name}: the table names neither an FFN module nor a plain activation")
    hidden = block.get_submodule(ffn.readers[0].path)(normed)
    hidden = block.get_submodule(ffn.activation)(hidden)
    return torch.as_tensor(block.get_submodule(ffn.writer)(hidden))
