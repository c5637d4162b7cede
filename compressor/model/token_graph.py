"""The graph of GTP-ViT: which tokens hand what they know to which (arXiv 2311.03035, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

_SEMANTIC = 8
"""Edges from every patch to those most like it."""


def token_graph(hidden: Tensor, leading: int, columns: int) -> Tensor:
    """Return D^(-1/2)·A·D^(-1/2), where A joins patches that touch in the image or are alike.

    Args:
        hidden: the stream, of all patches in their order, [batch, tokens, width].
        leading: how many tokens at the start are no patches; nothing is joined with them.
        columns: patches side by side in the image.

    Returns:
        [batch, tokens, tokens], symmetric.
    """
    patches = hidden[:, leading:]
    unit = patches / patches.norm(dim=-1, keepdim=True)
    count = patches.shape[1]
    places = torch.arange(count, device=hidden.device)
    itself = places.unsqueeze(1) == places
    likeness = torch.where(itself, -4.0, unit @ unit.transpose(1, 2))
    least = likeness.topk(min(_SEMANTIC, count - 1), dim=-1).values[..., -1:]
    alike = likeness >= least
    rows, across = places // columns, places % columns
    beside = ((rows.unsqueeze(1) - rows).abs() <= 1) & ((across.unsqueeze(1) - across).abs() <= 1) & ~itself
    edges = (alike | alike.transpose(1, 2) | beside).to(hidden.dtype)
    root = edges.sum(-1, keepdim=True).rsqrt()
    return torch.nn.functional.pad(root * edges * root.transpose(1, 2), (leading, 0, leading, 0))
