"""What becomes of the tokens of a block when some go: pure functions of a `Choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compressor.model.token_select import Choice


def picked(values: Tensor, places: Tensor) -> Tensor:
    """Return values [batch, tokens, …] at places [batch, n] of their own sample: [batch, n, …].

    Written as one look-up in the flattened batch, which ONNX Runtime does three times as fast as one per sample.
    """
    batch, tokens = values.shape[:2]
    starts = torch.arange(batch, device=values.device)[:, None] * tokens
    flat = values.flatten(0, 1).index_select(0, (places + starts).flatten())
    return flat.reshape(batch, places.shape[1], *values.shape[2:])


def merge(choice: Choice, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Let every token that goes join the one that stands for it: means, weighted by how many tokens each stands for.

    Args:
        choice: which go, and into which.
        x: the stream [batch, tokens, width].
        sizes: how many of the first tokens each token stands for, [batch, tokens, 1].

    Returns:
        The stream [batch, kept, width] and sizes [batch, kept, 1].
    """
    weighted = x * sizes
    places = torch.arange(choice.kept.shape[1], device=x.device)[None, :, None]
    joins = (choice.into[:, None, :] == places).to(x.dtype)  # [batch, kept, gone]; a product beats a scatter
    total = picked(sizes, choice.kept) + joins @ picked(sizes, choice.gone)
    return (picked(weighted, choice.kept) + joins @ picked(weighted, choice.gone)) / total, total


COMBINATIONS: Mapping[str, Callable[[Choice, Tensor, Tensor], tuple[Tensor, Tensor]]] = {"merge": merge}
"""Names of what becomes of dropped tokens, as recipes and config.json write them."""
