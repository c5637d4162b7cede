"""Mixed precision: which modules get how many bits, under a budget of bytes.

    1. sensitivity   per block and bit width: KL from the dense model when this block alone is rounded to nearest,
                     measured at the model's output on calibration data; hidden states: 1 − cosine
    2. split         inside a block: in proportion to E‖(W − W')x‖² / E‖Wx‖² of each module
    3. allocation    start with the fewest bits; again and again take the step that saves most loss per byte

One walk measures all blocks: beside the dense stream it carries one stream per block rounded so far and bit width, so
each block is read once. That is (blocks² / 2) · widths forward passes of single blocks, on few tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import UsageError

if TYPE_CHECKING:
    import torch

    from compressor.activations import ActivationStore
    from compressor.blocks import BlockView, Walk
    from compressor.grids import GridSpec
else:
    torch = lazy("torch")

SENSITIVITY_TOKENS = 1024
"""Losses are compared with each other, not reported as the model's: this many tokens settle their order."""


@dataclass(frozen=True)
class Choice:
    """What one module may become.

    Attributes:
        name: of the module.
        bytes: stored size per level, ascending.
        losses: predicted loss per level.
    """

    name: str
    bytes: tuple[int, ...]
    losses: tuple[float, ...]


def allocate(choices: Sequence[Choice], budget: int) -> list[int]:
    """Return a level per module such that the sizes sum to at most `budget` bytes and the losses to as little as found.

    Greedy by loss saved per byte, on each module's lower convex hull, where greedy is optimal up to the last step; a
    step that does not fit is left out, and smaller ones go on.

    Raises:
        UsageError: even the lowest levels do not fit.
    """
    levels = [0] * len(choices)
    left = budget - sum(choice.bytes[0] for choice in choices)
    if left < 0:
        least = sum(choice.bytes[0] for choice in choices)
        raise UsageError(f"budget: {budget} bytes are asked for, the fewest bits need {least}", hint="Raise `budget`.")
    steps = [(_next_step(choice, 0), index) for index, choice in enumerate(choices)]
    heap = [(-gain, index, level) for (gain, level), index in steps if level]
    heapq.heapify(heap)
    while heap:
        _, index, level = heapq.heappop(heap)
        choice = choices[index]
        cost = choice.bytes[level] - choice.bytes[levels[index]]
        if cost > left:
            continue
        left -= cost
        levels[index] = level
        gain, following = _next_step(choice, level)
        if following:
            heapq.heappush(heap, (-gain, index, following))
    return levels


def _next_step(choice: Choice, level: int) -> tuple[float, int]:
    """Return loss saved per byte, and the level, of the best step up from `level`; level 0 where none saves any."""
    best = (0.0, 0)
    for higher in range(level + 1, len(choice.bytes)):
        gain = (choice.losses[level] - choice.losses[higher]) / max(choice.bytes[higher] - choice.bytes[level], 1)
        best = max(best, (gain, higher))
    return best


Specs = Mapping[str, "GridSpec"]


def block_losses(walk: Walk, levels: Sequence[Specs], *, every: int) -> list[list[float]]:
    """Return, per level and block, the loss at the model's output when that block alone lies on the level's grids.

    Args:
        walk: over the dense model.
        levels: module name -> grid spec; one mapping per level.
        every: use every n-th calibration batch.
    """
    streams: dict[tuple[int, int], ActivationStore] = {}
    for view in walk.survey("sensitivity", every=every, keep=True):
        for store in streams.values():
            for k in range(len(view)):
                store[k] = view.forward(view.module, store[k].to(walk.device), k)
        for level, specs in enumerate(levels):
            with rounded_block(view, specs):
                store = streams[level, view.index] = walk.scratch()
                for k in range(len(view)):
                    store[k] = view.forward(view.module, view.dense_in(k), k)
    losses = [[0.0] * walk.count for _ in levels]
    for k, inputs in enumerate(list(walk.batches)[::every]):
        mask = walk.token_masks[k]
        wanted = walk.run_tail(inputs, walk.dense[k].to(walk.device))
        for (level, index), store in streams.items():
            found = walk.run_tail(inputs, store[k].to(walk.device))
            losses[level][index] += output_distance(found, wanted, mask, logits=walk.source.task != "feature-extraction")
    for store in streams.values():
        store.clear()
    walk.dense.clear()
    return losses


def output_distance(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None, *, logits: bool) -> float:
    """Return the sum over tokens (or images) of KL(wanted ‖ found) in nats, or of 1 − cosine for hidden states.

    Args:
        found: [batch, tokens, width] or [batch, classes].
        wanted: like `found`.
        mask: bool [batch, tokens], False at padding; None counts all.
        logits: whether the outputs are logits.
    """
    rows_found, rows_wanted = found.reshape(-1, found.shape[-1]).float(), wanted.reshape(-1, wanted.shape[-1]).float()
    if mask is not None and found.ndim == 3:
        rows_found, rows_wanted = rows_found[mask.reshape(-1)], rows_wanted[mask.reshape(-1)]
    if not logits:
        return float((1 - torch.nn.functional.cosine_similarity(rows_found, rows_wanted, dim=-1)).double().sum())
    log_p, log_q = rows_wanted.log_softmax(-1), rows_found.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).double().sum())


class rounded_block:  # noqa: N801  (a context manager, called like a function)
    """While entered, a block's weights lie on the grids of `specs`, rounded to nearest; afterwards they are as before."""

    def __init__(self, view: BlockView, specs: Specs) -> None:
        """Take the block and module name -> spec for the whole model."""
        from compressor.passes.quantize.linears import linear_paths

        paths = linear_paths(view.family)
        self._modules = [(view.module.get_submodule(p), specs.get(view.name_of(p))) for p in paths]

    def __enter__(self) -> None:
        """Round."""
        from compressor.grids import fit_grid

        self._before = [module.weight for module, _ in self._modules]
        for module, spec in self._modules:
            if spec is not None:
                values = fit_grid(module.weight.data, spec).rounded(module.weight.data)
                module.weight = torch.nn.Parameter(values, requires_grad=False)

    def __exit__(self, *_: object) -> None:
        """Put the weights back."""
        for (module, _), weight in zip(self._modules, self._before, strict=True):
            module.weight = weight


def module_shares(errors: Mapping[str, float]) -> dict[str, float]:
    """Return each module's share of its block's loss, from relative output errors; the shares sum to 1."""
    total = sum(errors.values())
    return {name: (error / total if total > 0 else 1 / len(errors)) for name, error in errors.items()}


Measure = Callable[[str, "torch.Tensor"], float]
