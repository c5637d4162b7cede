"""The parts of a block, run one by one, and blocks of ours that stand where a stock one stood.

A block of ours adopts the children of the stock block under their names, so its tensors are called as in the stock
model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compressor.architectures import Family, LayerShape
from compressor.errors import ModelError


def run_ffn(block: nn.Module, family: Family, normed: torch.Tensor) -> torch.Tensor:
    """Return what the FFN adds to the stream for its normed input [..., hidden], layer scale included."""
    ffn = family.ffn
    if ffn.module is not None:
        return scaled(block, ffn.scale, torch.as_tensor(block.get_submodule(ffn.module)(normed)))
    if ffn.activation is None or ffn.gated:
        raise ModelError(f"family {family.name}: the table names neither an FFN module nor a plain activation")
    hidden = block.get_submodule(ffn.readers[0].path)(normed)
    hidden = block.get_submodule(ffn.activation)(hidden)
    return scaled(block, ffn.scale, torch.as_tensor(block.get_submodule(ffn.writer)(hidden)))


def scaled(block: nn.Module, scale: str | None, written: torch.Tensor) -> torch.Tensor:
    """Return what a writer wrote [..., hidden] times the vector parameter at `scale`, if the family has one."""
    return written if scale is None else written * block.get_parameter(scale)


def fold_scales(block: nn.Module, family: Family) -> None:
    """Multiply the rows of a block's writers by the layer scale behind them, which becomes 1, in place.

    The block computes what it did, and whoever fits or quantizes a writer sees what is added to the stream.
    """
    for path, scale in ((family.attention.output, family.attention.scale), (family.ffn.writer, family.ffn.scale)):
        if scale is None:
            continue
        factors, writer = block.get_parameter(scale), block.get_submodule(path)
        for parameter in writer.parameters():  # [out, in] and [out]
            parameter.data = parameter.data * factors.data.reshape(-1, *[1] * (parameter.dim() - 1))
        factors.data = torch.ones_like(factors.data)


def past_attention(block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Return what the stream at a pre-norm block's input adds to the stream between attention and FFN."""
    shortcut = getattr(block, "attention_shortcut", None)
    return hidden if shortcut is None else torch.as_tensor(shortcut(hidden))


def past_ffn(block: nn.Module, middle: torch.Tensor) -> torch.Tensor:
    """Return what the stream between attention and FFN adds to a pre-norm block's output."""
    shortcut = getattr(block, "ffn_shortcut", None)
    return middle if shortcut is None else torch.as_tensor(shortcut(middle))


def ffn_half(block: nn.Module, family: Family, middle: torch.Tensor) -> torch.Tensor:
    """Return a block's output for the stream between attention and FFN."""
    if family.residual == "post":
        return torch.as_tensor(block.get_submodule(family.ffn.norm)(run_ffn(block, family, middle) + middle))
    normed = block.get_submodule(family.ffn.norm)(middle)
    return past_ffn(block, middle) + run_ffn(block, family, normed)


def adopt(child_of: nn.Module, block: nn.Module) -> None:
    """Give a module the children of a block, under their names."""
    for name, child in block.named_children():
        child_of.add_module(name, child)


class ShortcutBlock(nn.Module):
    """A pre-norm block whose residual stream changes width: x·S₁ + attention, then ·S₂ + FFN (SliceGPT, figure 4).

    `attention_shortcut` and `ffn_shortcut` are its only tensors that the stock block has not got.
    """

    def __init__(self, block: nn.Module, family: Family, layer: LayerShape) -> None:
        """Adopt the children of `block`; the shortcuts are [middle, before] and [after, middle] matrices."""
        super().__init__()
        if family.residual != "pre":
            raise ModelError(f"family {family.name}: shortcuts need norms before attention and FFN")
        adopt(self, block)
        before, middle, after = layer.residual
        with torch.device("meta"):
            self.attention_shortcut = nn.Linear(before, middle, bias=False)
            self.ffn_shortcut = nn.Linear(middle, after, bias=False)
        self.requires_grad_(False)
        self._family = family

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the block on hidden_states [batch, tokens, before]; return [batch, tokens, after]."""
        attention = self._family.attention
        normed = self.get_submodule(attention.norm)(hidden_states)
        attended = self.get_submodule(attention.module)(normed, *args, **kwargs)[0]
        attended = scaled(self, attention.scale, attended)
        return ffn_half(self, self._family, past_attention(self, hidden_states) + attended)
