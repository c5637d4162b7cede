"""What a walk backward through the dense model starts from: every block's input, and a loss that needs no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compressor.passes.surgery.observe import unpadded

if TYPE_CHECKING:
    from compressor.architectures.tasks import Head
    from compressor.walk import BlockView, Walk
    from compressor.walk.activations import ActivationStore


def keep_inputs(walk: Walk, note: str) -> list[ActivationStore]:
    """Walk the dense model forward and return every block's inputs, on disk: in memory they would grow with depth.

    The last block's outputs stay in `walk.dense`.
    """
    return [inputs_of(walk, view) for view in walk.survey(note, keep=True)]


def inputs_of(walk: Walk, view: BlockView, every: int = 1) -> ActivationStore:
    """Return the block's inputs for every n-th batch that is walked, by the number of the batch in the walk; on disk.

    To be called before the block is run.
    """
    store = walk.scratch(on_disk=True)
    for k in range(0, len(view), every):
        store[k] = view.dense_in(k)
    return store


def sampled_loss(
    logits: torch.Tensor, mask: torch.Tensor | None, generator: torch.Generator, head: Head | None = None
) -> torch.Tensor:
    """Return the summed negative log-likelihood of labels drawn from the predictions themselves.

    With such labels the second moment of the gradient is the Fisher information (Martens 2020, section 5). Classes and
    tokens are drawn from a softmax, sets of labels from a sigmoid each, and real numbers from a normal distribution of
    variance 1 around the output.

    Args:
        logits: [batch, tokens, V], or [batch, classes].
        mask: bool [batch, tokens], False at padding; only used for tokens.
        generator: of the labels, on the CPU.
        head: what the outputs of a classifier mean; None for tokens.
    """
    if head is not None and head.kind == "values":
        drawn = logits.detach().cpu() + torch.randn(logits.shape, generator=generator)
        return (logits - drawn.to(logits)).square().sum() / 2
    if head is not None and head.kind == "label sets":
        holds = torch.bernoulli(logits.detach().cpu().sigmoid(), generator=generator).to(logits)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, holds, reduction="sum")
    tokens = unpadded(logits, mask if logits.dim() == 3 else None)
    labels = sampled_labels(tokens, generator).to(tokens.device)
    return torch.nn.functional.cross_entropy(tokens, labels, reduction="sum")


def sampled_labels(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a label [rows] from the prediction in each row of logits [rows, V]: one uniform number, inverted by the CDF.

    Args:
        logits: [rows, V].
        generator: of the uniform numbers, on the CPU.
    """
    cumulative = logits.detach().cpu().softmax(-1).cumsum(-1)
    points = torch.rand(len(cumulative), 1, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)
