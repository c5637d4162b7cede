"""What an allocation must know of the whole dense model: angular distances, or loss curves and sensitivities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.passes.numerics.elimination import eliminate, losses_in_order, losses_without_refit
from compressor.passes.numerics.moments import Moments
from compressor.passes.structure._width.fisher import fisher_traces
from compressor.passes.structure._width.importance import channels_of, score
from compressor.passes.surgery import slots
from compressor.passes.surgery.backward import inputs_of
from compressor.passes.surgery.observe import output_and_signals, unpadded
from compressor.walk.sampling import count_tokens

if TYPE_CHECKING:
    import torch

    from compressor.passes.structure._width.options import WidthOptions
    from compressor.walk import BlockView, Walk
else:
    torch = lazy("torch")

# Fisher traces are one number per block: this many tokens settle them.
SENSITIVITY_TOKENS = 2048
# Loss curves only decide how many channels each block keeps: part of the data that a refit needs is enough.
CURVE_SHARE = 3


def angular_distances(walk: Walk, *, every: int) -> list[float]:
    """Return E[arccos(cos(x_in, x_out)) / π] over tokens, per block (CFSP, arXiv 2409.13199, equation 3).

    Where tokens become fewer in a block, x_in is the stream behind that, in front of the FFN.
    """
    found = []
    for view in walk.survey("distances", every=every):
        total, tokens = 0.0, 0
        for k in range(len(view)):
            before = view.dense_in(k)
            after = view.forward(view.module, before, k)
            if after.shape[1] != before.shape[1]:
                before = view.to_middle(view.module, before, k)
            mask = view.token_mask(k, like=after)
            cosine = torch.nn.functional.cosine_similarity(unpadded(before, mask), unpadded(after, mask), dim=-1)
            total += float((cosine.clamp(-1, 1).acos() / math.pi).double().sum())
            tokens += len(cosine)
            view.put_dense(k, after)
        found.append(total / tokens)
    return found


def loss_curves(walk: Walk, options: WidthOptions, floor: int, *, every: int) -> tuple[list[torch.Tensor], list[float]]:
    """Return each block's loss after its 1, 2, … least important channels have gone, and the weight of its loss."""
    every = every * CURVE_SHARE if len(walk.batches) >= 4 * every * CURVE_SHARE else every
    # Which of the walked batches the gradients go through.
    share = max(1, min(count_tokens(walk) // SENSITIVITY_TOKENS, len(walk.batches)) // every)
    fisher = options.weighting == "fisher"
    curves, energies, inputs = [], [], []
    for view in walk.survey("loss curves", every=every, keep=fisher):
        if fisher:
            inputs.append(inputs_of(walk, view, share))
        curve, energy = _curve_and_energy(view, options, floor)
        curves.append(curve)
        energies.append(energy)
    if fisher:
        return curves, fisher_traces(walk, inputs, every=every, share=share, seed=options.seed)
    return curves, [1 / energy if energy > 0 else 0.0 for energy in energies]


def _moments(view: BlockView) -> tuple[Moments, float]:
    """Return the moments of a block's channels and the mean square of the residual stream at its FFN."""
    moments = Moments(view.layer.intermediate_size, 0, view.dense_in(0).device)
    total, count = 0.0, 0
    for k in range(len(view)):
        middle = view.to_middle(view.module, view.dense_in(k), k)
        mask = view.token_mask(k, like=middle)
        out, channels = output_and_signals(view, view.module, middle, k)
        signals, stream = unpadded(channels, mask), unpadded(middle, mask)
        moments.add(signals, signals[:, :0])
        total, count = total + float(stream.double().square().sum()), count + stream.numel()
        view.put_dense(k, out)
    return moments, total / count


def _curve_and_energy(view: BlockView, options: WidthOptions, floor: int) -> tuple[torch.Tensor, float]:
    moments, energy = _moments(view)
    return _curve(view, moments, options, floor), energy


def _curve(view: BlockView, moments: Moments, options: WidthOptions, floor: int) -> torch.Tensor:
    writer = slots.read(view.module, view.family.ffn.writer)
    with_bias = options.reconstruct and slots.read_bias(view.module, view.family.ffn.writer) is not None
    seen = moments.centred() if with_bias else moments
    if options.importance == "obs":
        return eliminate(writer, seen.gram, keep=floor, damping=options.damping).losses
    order = score(options.importance, channels_of(view, moments, options.seed)).argsort(stable=True)
    order = order[: len(order) - floor]
    if options.reconstruct:
        return losses_in_order(writer, seen.gram, order, damping=options.damping)
    return losses_without_refit(writer, seen.gram, order)
