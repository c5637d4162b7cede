"""What flows through a block: the signals of its parts, seen while it runs, and the tokens that count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from compressor.walk.calls import first_input, recorded

if TYPE_CHECKING:
    from compressor.walk import BlockView


def unpadded(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the tokens of a batch [batch, tokens, width] without padding, one below the other, [unpadded, width].

    Args:
        tensor: of any shape whose last dimension is the width, if the mask fits the others.
        mask: bool [batch, tokens], False at padding; None where nothing is padded.
    """
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if mask is None else flat[mask.reshape(-1)]


def norm_eps(norm: nn.Module) -> float:
    """Return the eps of a norm module, whatever it calls it."""
    eps = getattr(norm, "variance_epsilon", None)
    return float(norm.eps if eps is None else eps)  # type: ignore[arg-type]


def channel_signals(view: BlockView, module: nn.Module, middle: torch.Tensor, k: int) -> torch.Tensor:
    """Return the writer's input h, [batch, tokens, channels], for what `to_middle` returned."""
    found = first_input(module, view.family.ffn.writer, lambda: view.from_middle(module, middle, k))
    return found.reshape(*middle.shape[:2], -1)


def output_and_signals(
    view: BlockView, module: nn.Module, middle: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the block's output and the writer's input h, [batch, tokens, width] and [batch, tokens, channels]."""
    with recorded(module, view.family.ffn.writer) as signals:
        out = view.from_middle(module, middle, k)
    return out, signals[0].reshape(*middle.shape[:2], -1)


def ffn_half(view: BlockView, module: nn.Module, middle: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the block's output and what the FFN's writer added to `middle`, both [batch, tokens, width]."""
    with recorded(module, view.family.ffn.writer, outputs=True) as added:
        out = view.from_middle(module, middle, k)
    return out, added[0].reshape(middle.shape)


def attention_half(
    view: BlockView, module: nn.Module, hidden: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the middle and what attention's output matrix added to the stream, both [batch, tokens, width]."""
    with recorded(module, view.family.attention.output, outputs=True) as added:
        middle = view.to_middle(module, hidden, k)
    return middle, added[0].reshape(hidden.shape)


def reader_signal(view: BlockView, module: nn.Module, stream: torch.Tensor, norm: str) -> torch.Tensor:
    """Return what readers see of `stream`: normed by the module at `norm`; bare where norms stand behind the sums."""
    return stream if view.family.residual == "post" else torch.as_tensor(module.get_submodule(norm)(stream))


def relative_weights(stream: torch.Tensor) -> torch.Tensor:
    """Return 1 / mean square of each token of a stream [tokens, width]: norms divide by that, as errors then do."""
    energy = stream.square().mean(-1)
    return 1 / (energy + 1e-3 * energy.mean() + 1e-30)
