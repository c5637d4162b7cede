"""What becomes of the tokens of a block when some go: pure functions of a `Choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compressor.model.token_select import Choice


def picked(values: Tensor, places: Tensor) -> Tensor:
    """Return values [batch, tokens, width] at places [batch, n] of their own sample: [batch, n, width].

    Written as one look-up in the flattened batch, which ONNX Runtime does three times as fast as one per sample.
    """
    tokens, width = values.shape[1:]
    starts = torch.arange(places.shape[0], device=values.device).unsqueeze(1) * tokens
    flat = values.reshape(-1, width).index_select(0, (places + starts).reshape(-1))
    return flat.reshape(-1, places.shape[1], width)


def merge(choice: Choice, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Let every token that goes join the one that stands for it: means, weighted by how many tokens each stands for.

    Args:
        choice: which go, and into which.
        x: the stream [batch, tokens, width].
        sizes: how many of the first tokens each token stands for, [batch, tokens, 1].

    Returns:
        The stream [batch, kept, width] and sizes [batch, kept, 1].
    """
    counts = [choice.kept.shape[1], choice.gone.shape[1]]
    summed = torch.cat([x * sizes, sizes], dim=-1)
    kept, gone = picked(summed, torch.cat([choice.kept, choice.gone], dim=1)).split(counts, dim=1)
    places = torch.arange(counts[0], device=x.device).unsqueeze(1)
    joins = (choice.into.unsqueeze(1) == places).to(x.dtype)  # [batch, kept, gone]; a product beats a scatter
    total, sizes = (kept + joins @ gone).split([x.shape[-1], 1], dim=-1)
    return total / sizes, sizes


COMBINATIONS: Mapping[str, Callable[[Choice, Tensor, Tensor], tuple[Tensor, Tensor]]] = {"merge": merge}
"""Names of what becomes of dropped tokens, as recipes and config.json write them."""
