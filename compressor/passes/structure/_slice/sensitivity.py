"""What the loss sees of the residual stream: second moments of the stream and of the loss's gradient at every norm.

The gradient goes backward through the blocks one at a time, from inputs kept on the way forward (on disk past the
walk's memory budget), so memory does not grow with depth. Labels are drawn from the model's own predictions: the
second moment of the gradient is then the Fisher information, and no labelled data is needed.

Sites are numbered through the model: 2i is the attention norm of block i, 2i + 1 its FFN norm, the last the final norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.passes.numerics.moments import accumulate
from compressor.passes.numerics.rotation import normed
from compressor.passes.surgery.backward import keep_inputs, sampled_loss
from compressor.passes.surgery.observe import norm_eps, unpadded
from compressor.walk.calls import recorded, run_block

if TYPE_CHECKING:
    import torch

    from compressor.walk import Walk
    from compressor.walk.activations import ActivationStore
else:
    torch = lazy("torch")


# Sites of neighbouring blocks see nearly the same stream and share one sum, so that memory does not grow with depth.
_GROUPS = 6


@dataclass
class Sites:
    """Second moments [d, d] float64 over the tokens of each group of sites; the final norm is a group of its own.

    Attributes:
        streams: mean of x·xᵀ, x the normed stream without the norm's scale and shift.
        gradients: sum of g·gᵀ, g the loss's gradient with respect to x.
        tokens: how many tokens were seen.
    """

    streams: list[torch.Tensor]
    gradients: list[torch.Tensor]
    tokens: list[int]


def survey_principal(walk: Walk, every: int = 1) -> Iterator[torch.Tensor]:
    """Yield the second moment Σ x·xᵀ [d, d] of the dense stream at every norm's input, centred for a LayerNorm.

    Only every n-th batch is looked at.
    """
    centre = walk.source.family.norm == "layer"
    width = walk.source.shapes.hidden_size

    def see(total: torch.Tensor, stream: torch.Tensor, mask: torch.Tensor | None) -> None:
        tokens = unpadded(stream, mask)
        tokens = tokens - tokens.mean(-1, keepdim=True) if centre else tokens
        accumulate(total, tokens, tokens)

    def zeros() -> torch.Tensor:
        return torch.zeros(width, width, dtype=torch.float64, device=walk.device)

    for view in walk.survey(keep=True, every=every):
        before, between = zeros(), zeros()
        for k in range(len(view)):
            hidden, mask = view.dense_in(k), view.token_mask(k)
            middle = view.to_middle(view.module, hidden, k)
            see(before, hidden, mask)
            see(between, middle, mask)
            view.put_dense(k, view.from_middle(view.module, middle, k))
        yield before
        yield between
    last = zeros()
    for k in range(len(walk.calls)):
        see(last, walk.dense[k].to(walk.device), walk.token_masks[k])
    walk.dense.clear()
    yield last


def survey_sensitivity(walk: Walk, seed: int = 0) -> Sites:
    """Run the dense model forward and backward over the walk's batches; return what every site sees.

    Raises:
        ModelError: activations or gradients are not finite.
    """
    stash = keep_inputs(walk, "survey")
    width = walk.source.shapes.hidden_size
    groups = min(_GROUPS, 2 * walk.count) + 1
    zeros = [torch.zeros(width, width, dtype=torch.float64, device=walk.device) for _ in range(2 * groups)]
    found = Sites(zeros[:groups], zeros[groups:], [0] * groups)
    generator = torch.Generator().manual_seed(seed)
    for k, inputs in enumerate(walk.batches):
        walk.dense[k] = _tail_gradient(walk, inputs, walk.dense[k], found, generator)
    with walk.only_blocks():
        for index in reversed(range(walk.count)):
            _block_gradients(walk, index, stash[index], found)
            stash[index].clear()
            walk.advance(f"sensitivity {walk.count - index} of {walk.count}")
    walk.dense.clear()
    for total, tokens in zip(found.streams, found.tokens, strict=True):
        total.div_(max(1, tokens))
    if not all(bool(torch.isfinite(g).all()) for g in (*found.streams, *found.gradients)):
        raise ModelError("the gradient of the loss is not finite", hint="The model overflows on the calibration data.")
    return found


def _tail_gradient(
    walk: Walk, inputs: dict[str, Any], hidden: torch.Tensor, found: Sites, generator: Any
) -> torch.Tensor:
    """Return the loss's gradient at the last block's output, [batch, tokens, d]; samples go one by one, for memory."""
    from compressor.model.modules import base_of

    norm = base_of(walk.model).get_submodule(str(walk.source.family.final_norm))
    gradients = []
    for i in range(len(hidden)):
        single = {name: array[i : i + 1] for name, array in inputs.items()}
        leaf = hidden[i : i + 1].to(walk.device).requires_grad_(True)
        with torch.enable_grad(), recorded(norm, "", outputs=True) as seen:
            logits = walk.run_tail(single, leaf).float()
            seen[0].retain_grad()
            mask = single.get("attention_mask")
            real = None if mask is None else torch.as_tensor(mask).bool()
            sampled_loss(logits, real, generator, walk.source.head).backward()
        _note_site(found, -1, norm, leaf.detach(), seen[0].grad, walk.source.family.norm == "layer")
        gradients.append(_gradient(leaf))
    return torch.cat(gradients)


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _block_gradients(walk: Walk, index: int, inputs: ActivationStore, found: Sites) -> None:
    """Take the gradient in `walk.dense` from the output of block `index` to its input, noting both its sites."""
    family = walk.source.family
    block = walk.open_block(index)
    paths = (family.attention.norm, family.ffn.norm)
    centre = family.norm == "layer"
    groups = len(found.tokens) - 1
    for k in range(len(inputs)):
        slope = walk.dense[k].to(walk.device)
        leaf = inputs[k].to(walk.device).requires_grad_(True)
        with torch.enable_grad(), recorded(block, *paths, outputs=True) as seen, recorded(block, *paths) as streams:
            out = run_block(block, leaf, walk.calls[k][index].to(walk.device))
            for normed_stream in seen:
                normed_stream.retain_grad()
            out.backward(slope)
        for half, path in enumerate(paths):
            _note_site(
                found,
                (2 * index + half) * groups // (2 * walk.count),
                block.get_submodule(path),
                streams[half].detach(),
                seen[half].grad,
                centre,
            )
        walk.dense[k] = _gradient(leaf)
    walk.close_block(index)


def _note_site(
    found: Sites, group: int, norm: Any, stream: torch.Tensor, gradient: torch.Tensor | None, centre: bool
) -> None:
    """Add one batch to a group: tokens whose gradient is not zero, so neither padding nor unused outputs."""
    if gradient is None:
        raise ModelError("a norm of the model takes no part in its output: the family's table does not fit it")
    tokens, slopes = unpadded(stream, None), unpadded(gradient, None)
    read = slopes.abs().amax(-1) > 0
    found.tokens[group] += int(read.sum())
    seen, slope = normed(tokens[read], norm_eps(norm), centre=centre), slopes[read] * norm.weight
    accumulate(found.streams[group], seen, seen)
    accumulate(found.gradients[group], slope, slope)
