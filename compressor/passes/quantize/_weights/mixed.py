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
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import UsageError
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import linear_paths
from compressor.passes.surgery.observe import unpadded
from compressor.walk.calls import observing
from compressor.walk.sampling import count_tokens

if TYPE_CHECKING:
    import torch

    from compressor.architectures.tasks import Head
    from compressor.model.folder import ModelFolder
    from compressor.storage.grids import GridSpec
    from compressor.walk import BlockView, Walk
    from compressor.walk.activations import ActivationStore
else:
    torch = lazy("torch")

SENSITIVITY_TOKENS = 1024
"""Losses are compared with each other, not reported as the model's: this many tokens settle their order."""
FLOAT_BYTES = 4
"""Of a weight that stays as it is, in the float32 graph that quantized weights need."""


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


def allocate(choices: Sequence[Choice], share: float) -> list[int]:
    """Return a level per module such that the sizes sum to at most a share of those at the highest levels.

    For the least sum of losses: greedy by loss saved per byte, on each module's lower convex hull, where greedy is
    optimal up to the last step; a step that does not fit is left out, and smaller ones go on.

    Raises:
        UsageError: even the lowest levels do not fit.
    """
    levels = [0] * len(choices)
    least, most = (sum(choice.bytes[end] for choice in choices) for end in (0, -1))
    left = int(share * most) - least
    if left < 0:
        raise UsageError(
            f"budget: {share:g} of the matrices' float32 bytes is asked for, the fewest bits take {least / most:.4f}",
            hint=f"Allowed: {math.ceil(1e4 * least / most) / 1e4} to 1; a larger group_size takes less.",
        )
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


def block_losses(
    walk: Walk, levels: Sequence[Specs], *, every: int
) -> tuple[list[list[float]], list[dict[str, float]]]:
    """Return, per level and block, the loss at the model's output when that block alone lies on the level's grids.

    Losses are means over tokens. Beside them, per block: module name -> share of the loss (at the first level).

    Args:
        walk: over the dense model.
        levels: module name -> grid spec; one mapping per level.
        every: use every n-th calibration batch.
    """
    streams: dict[tuple[int, int], ActivationStore] = {}
    shares: list[dict[str, float]] = []
    for view in walk.survey("sensitivity", every=every, keep=True):
        for store in streams.values():
            for k in range(len(view)):
                store[k] = view.forward(view.module, store[k].to(walk.device), k)
        shares.append(_output_shares(view, levels[0]))
        for level, specs in enumerate(levels):
            with rounded(view, specs):
                store = streams[level, view.index] = walk.scratch()
                for k in range(len(view)):
                    store[k] = view.forward(view.module, view.dense_in(k), k)
    losses, count = [[0.0] * walk.count for _ in levels], 0
    for k, inputs in enumerate(itertools.islice(walk.batches, 0, None, every)):
        mask = walk.token_masks[k]
        wanted = walk.run_tail(inputs, walk.dense[k].to(walk.device), k)
        per_token = mask is not None and wanted.ndim == 3
        count += int(mask.sum()) if per_token and mask is not None else wanted[..., 0].numel()
        for (level, index), store in streams.items():
            found = walk.run_tail(inputs, store[k].to(walk.device), k)
            losses[level][index] += output_distance(
                found, wanted, mask, logits=walk.source.task != "feature-extraction", head=walk.source.head
            )
    for store in streams.values():
        store.clear()
    walk.dense.clear()
    return [[loss / count for loss in row] for row in losses], shares


def output_distance(
    found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None, *, logits: bool, head: Head | None = None
) -> float:
    """Return the sum over tokens (or samples) of KL(wanted ‖ found) in nats, or of 1 − cosine for hidden states.

    Of several labels at once, each has one. Of a real number it is that of normal distributions of variance 1 around
    it: half the squared difference.

    Args:
        found: [batch, tokens, width] or [batch, classes].
        wanted: like `found`.
        mask: bool [batch, tokens], False at padding; None counts all.
        logits: whether the outputs are logits.
        head: what the outputs of a classifier mean; None for tokens.
    """
    mask = mask if found.ndim == 3 else None
    found, wanted = (unpadded(outputs, mask).float() for outputs in (found, wanted))
    if not logits:
        return float((1 - torch.nn.functional.cosine_similarity(found, wanted, dim=-1)).double().sum())
    if head is not None and head.kind == "values":
        return float((found - wanted).double().square().sum() / 2)
    if head is not None and head.kind == "label sets":
        # Each label against its absence is a softmax over its logit and 0.
        found, wanted = (torch.stack([outputs, torch.zeros_like(outputs)], dim=-1) for outputs in (found, wanted))
    log_p, log_q = wanted.log_softmax(-1), found.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).double().sum())


@contextmanager
def rounded(view: BlockView, specs: Specs) -> Iterator[None]:
    """While entered, a block's weights lie on the grids of `specs`, rounded to nearest; then they are as before."""
    from compressor.storage.grids import fit_grid

    before = {path: slots.read(view.module, path) for path in linear_paths(view.family) if view.name_of(path) in specs}
    for path, weight in before.items():
        slots.write(view.module, path, fit_grid(weight, specs[view.name_of(path)]).rounded(weight))
    try:
        yield
    finally:
        for path, weight in before.items():
            slots.write(view.module, path, weight)


def block_choices(source: ModelFolder, levels: Sequence[Specs], losses: Mapping[str, Sequence[float]]) -> list[Choice]:
    """Return what the modules of the blocks may become: the levels' grids, or floats as they are (4 bytes, no loss).

    Args:
        source: the model.
        levels: module name -> grid spec, from the fewest bits up; all name the same modules.
        losses: module name -> predicted loss per level.
    """
    model = source.skeleton()
    found = []
    for name in levels[0]:
        outputs, inputs = slots.read(model, name).shape
        sizes = [specs[name].bytes(outputs, inputs) for specs in levels]
        found.append(Choice(name, (*sizes, FLOAT_BYTES * outputs * inputs), (*losses[name], 0.0)))
    return found


def assumed(source: ModelFolder, levels: Sequence[Specs], share: float) -> list[int]:
    """Return levels that fill the budget as data would, with nothing known of the losses: what `plan` counts with.

    Raises:
        UsageError: the budget is below the fewest bits.
    """
    known = block_choices(source, levels, {name: [0.0] * len(levels) for name in levels[0]})
    known = [replace(c, losses=tuple(float(c.bytes[-1] - size) for size in c.bytes)) for c in known]
    return allocate(known, share)


def survey_levels(walk: Walk, levels: Sequence[Specs], share: float) -> dict[str, torch.Tensor]:
    """Return `levels`, the level of every module in the order of `levels[0]`, and `losses` [levels, blocks] in nats.

    Raises:
        UsageError: the budget is below the fewest bits.
    """
    every = max(1, count_tokens(walk) // SENSITIVITY_TOKENS)
    every = min(every, len(walk.batches))
    losses, shares = block_losses(walk, levels, every=every)
    split = {
        name: [losses[level][index] * part for level in range(len(levels))]
        for index, parts in enumerate(shares)
        for name, part in parts.items()
    }
    choices = block_choices(walk.source, levels, split)
    chosen = allocate(choices, share)
    return {"levels": torch.tensor(chosen), "losses": torch.tensor(losses, dtype=torch.float64)}


def _output_shares(view: BlockView, specs: Specs) -> dict[str, float]:
    """Return each module's share of its block's loss: E‖(W − W')x‖² / E‖Wx‖² on the first batch, over the sum."""
    from compressor.storage.grids import fit_grid

    errors: dict[str, float] = {}
    paths = [path for path in linear_paths(view.family) if view.name_of(path) in specs]

    def note(path: str, inputs: torch.Tensor) -> None:
        weight = slots.read(view.module, path)
        name, tokens = view.name_of(path), unpadded(inputs, None)
        moved = (weight - fit_grid(weight, specs[name]).rounded(weight)) @ tokens.T
        errors[name] = float(moved.square().sum() / (weight @ tokens.T).square().sum().clamp(min=1e-30))

    with observing(view.module, paths, note):
        view.forward(view.module, view.dense_in(0), 0)
    total = sum(errors.values())
    return {name: (errors[name] / total if total > 0 else 1 / len(errors)) for name in errors}
