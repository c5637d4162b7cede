"""What the pixels of a patch say by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 16
_FLAT = 1e-6


def patch_entropy(pixels: Tensor, patches: int, columns: int) -> Tensor:
    """Return the entropy of the grey levels in each patch, in nats: [batch, patches].

    A pixel's grey is the sum of its channels; levels divide what lies between the darkest and the brightest of the
    image evenly. Sums of channels are written out, so that every runtime finds the same levels.

    Args:
        pixels: [batch, channels, height, width].
        patches: of an image.
        columns: patches side by side.
    """
    grey = pixels[:, 0]
    for channel in range(1, pixels.shape[1]):
        grey = grey + pixels[:, channel]
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    level = ((grey - low) / (high - low).clamp(min=_FLAT) * _LEVELS).floor().clamp(max=_LEVELS - 1)
    rows = patches // columns
    height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
    cells = level[:, : rows * height, : columns * width].reshape(-1, rows, height, columns, width)
    cells = cells.transpose(2, 3).reshape(-1, patches, height * width, 1)
    shares = (cells == torch.arange(_LEVELS, device=pixels.device)).to(pixels.dtype).mean(2)  # [batch, patches, levels]
    return -(shares * shares.clamp(min=_FLAT).log()).sum(-1)
