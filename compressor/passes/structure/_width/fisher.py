"""How much the model's output cares about each block's FFN output: the trace of its Fisher information.

E‖∂ log p(ŷ) / ∂y_i‖² with labels ŷ drawn from the model itself and y_i the FFN output of block i (Martens 2020, section
5). A model without a distribution (a sentence encoder) gets the Gauss–Newton form for squared error: random signs stand
in for the gradient at its output. Walked backwards block by block, so memory stays that of one block; activations wait
on disk past the walk's budget.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.machine.memory import trim_heap
from compressor.passes.surgery.backward import sampled_loss
from compressor.passes.surgery.observe import unpadded
from compressor.walk.calls import recorded, run_block

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.walk import Walk
    from compressor.walk.activations import ActivationStore
else:
    torch = lazy("torch")


def fisher_traces(walk: Walk, inputs: list[ActivationStore], *, every: int, share: int, seed: int = 0) -> list[float]:
    """Return E‖∂/∂y_i‖² / width for every block i, over the tokens of some batches of a survey.

    Args:
        walk: behind a survey with `keep`.
        inputs: of every block, for every `share`-th batch of the survey; they are dropped.
        every: the survey walked every n-th calibration batch.
        share: see `inputs`.
        seed: of the drawn labels.

    Raises:
        ModelError: a gradient is not finite.
    """
    _output_gradients(walk, every, share, seed)
    trim_heap()  # logits and their gradients are as wide as the vocabulary
    traces = []
    with walk.only_blocks():
        for index in reversed(range(walk.count)):
            traces.append(_block_trace(walk, index, inputs[index], share))
            inputs[index].clear()
            walk.advance(f"sensitivity {walk.count - index} of {walk.count}")
    walk.dense.clear()
    return traces[::-1]


def _output_gradients(walk: Walk, every: int, share: int, seed: int) -> None:
    """Put the gradient of the sampled log-likelihood at the last block's output in that output's place."""
    generator = torch.Generator().manual_seed(seed)
    for count, inputs in enumerate(islice(walk.batches, 0, None, every * share)):
        k = count * share
        with torch.enable_grad():
            hidden = walk.dense[k].to(walk.device).detach().requires_grad_()
            out = walk.run_tail(inputs, hidden, k)
            mask = walk.token_masks[k]
            if walk.source.task == "feature-extraction":
                signs = torch.randint(0, 2, out.shape, generator=generator).to(out) * 2 - 1
                if mask is not None and out.ndim == 3:
                    signs = signs * mask[..., None].to(out)
                loss = (out * signs).sum()
            else:
                loss = sampled_loss(out, mask, generator, walk.source.head)
            walk.dense[k] = torch.autograd.grad(loss, hidden)[0]


def _block_trace(walk: Walk, index: int, inputs: ActivationStore, share: int) -> float:
    """Return one block's trace; take the gradients in `walk.dense` from its output to its input."""
    block = walk.open_block(index)
    total, count = 0.0, 0
    for k in range(0, len(walk.calls), share):
        at_input, at_writer = _backwards(walk, block, index, k, inputs[k])
        if not bool(torch.isfinite(at_input).all()):
            raise ModelError(f"the gradient through block {index} is not finite", hint="Set weighting: residual.")
        seen = unpadded(at_writer, walk.streams.mask(k, index, at_writer))
        total, count = total + float(seen.double().square().sum()), count + seen.numel()
        walk.dense[k] = at_input
    walk.close_block(index)
    return total / max(count, 1)


def _backwards(
    walk: Walk, block: nn.Module, index: int, k: int, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients at a block's input and at its FFN writer's output."""
    with torch.enable_grad(), recorded(block, walk.source.family.ffn.writer, outputs=True) as written:
        start = hidden.to(walk.device).requires_grad_()
        out = run_block(block, start, walk.calls[k][index].to(walk.device))
        at_input, at_writer = torch.autograd.grad(out, [start, written[0]], walk.dense[k].to(walk.device))
    return at_input, at_writer
