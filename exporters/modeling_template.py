"""Loads this model in transformers with `trust_remote_code=True`: the stock class, with the true widths of every layer.

The widths and the places of the matrices stand in the `compression` section of config.json. No weight is padded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel as Base


def _sized(module: Any, rows: int | None, columns: int | None) -> None:
    """Give a linear, embedding, convolution or norm module a weight of another size."""
    shape = list(module.weight.shape)
    if isinstance(module, nn.Embedding):
        shape[1] = rows if rows is not None else shape[1]
        module.embedding_dim = shape[1]
    else:
        shape[0] = rows if rows is not None else shape[0]
        if columns is not None:
            shape[1] = columns
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.Conv2d):
        module.out_channels = shape[0]
    module.weight = nn.Parameter(module.weight.new_empty(shape))
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(module.bias.new_empty(shape[0]))


class _ShortcutBlock(nn.Module):
    """A pre-norm block whose residual stream changes width through two matrices."""

    def __init__(self, block: nn.Module, paths: dict[str, Any], widths: list[int]) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.attention_shortcut = nn.Linear(widths[0], widths[1], bias=False)
        self.ffn_shortcut = nn.Linear(widths[1], widths[2], bias=False)
        self._paths = paths

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        paths = self._paths
        normed = self.get_submodule(paths["attention_norm"])(hidden_states)
        attended = self.get_submodule(paths["attention_module"])(normed, *args, **kwargs)[0]
        hidden_states = self.attention_shortcut(hidden_states) + attended
        written = self.get_submodule(paths["ffn_norm"])(hidden_states)
        if paths["ffn_module"] is not None:
            written = self.get_submodule(paths["ffn_module"])(written)
        else:
            for name in (paths["ffn_readers"][0], paths["activation"], paths["ffn_writer"]):
                written = self.get_submodule(name)(written)
        return torch.as_tensor(self.ffn_shortcut(hidden_states) + written)


def _size_block(block: nn.Module, paths: dict[str, Any], layer: dict[str, Any], head_dim: int) -> None:
    before, middle, after = layer["residual"]
    heads, groups = layer["num_attention_heads"], layer["num_key_value_heads"]
    norms = (middle, after) if paths["residual"] == "post" else (before, middle)
    _sized(block.get_submodule(paths["attention_norm"]), norms[0], None)
    _sized(block.get_submodule(paths["ffn_norm"]), norms[1], None)
    for name, count in zip(paths["attention_readers"], (heads, groups, groups), strict=True):
        _sized(block.get_submodule(name), count * head_dim, before)
    _sized(block.get_submodule(paths["attention_output"]), middle, heads * head_dim)
    for name in paths["ffn_readers"]:
        _sized(block.get_submodule(name), layer["intermediate_size"], middle)
    _sized(block.get_submodule(paths["ffn_writer"]), after, layer["intermediate_size"])
    attention = block.get_submodule(paths["attention_module"])
    if hasattr(attention, "num_key_value_groups"):
        attention.num_key_value_groups = heads // groups


def _size_model(model: Any, section: dict[str, Any]) -> None:
    paths, layers = section["paths"], section["layers"]
    base = getattr(model, model.base_model_prefix, model)
    first, last = layers[0]["residual"][0], layers[-1]["residual"][2]
    modules, names = dict(base.named_modules()), dict(model.named_modules())
    for name in paths["embeddings"]:
        if name in modules:
            _sized(modules[name], first, None)
    for name in paths["vectors"]:
        holder_name, _, own = name.rpartition(".")
        vector = getattr(modules.get(holder_name), own, None)
        if vector is not None:
            setattr(modules[holder_name], own, nn.Parameter(vector.new_empty((*vector.shape[:-1], first))))
    if paths["final_norm"]:
        _sized(modules[paths["final_norm"]], last, None)
    for name in paths["heads"]:
        if name in names and not getattr(model.config, "tie_word_embeddings", False):
            _sized(names[name], None, last)
    blocks = modules[paths["blocks"]]
    for index, layer in enumerate(layers):
        _size_block(blocks[index], paths, layer, section["head_dim"])
        if section["shortcuts"]:
            blocks[index] = _ShortcutBlock(blocks[index], paths, layer["residual"])


class CompressedModel(Base):
    """The stock model with per-layer widths."""

    def __init__(self, config: Any) -> None:
        """Build the stock model, then give every matrix its true size."""
        super().__init__(config)
        _size_model(self, config.compression)
