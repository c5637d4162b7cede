"""The counts that lose least under a budget of operations, found by agreement with the dense model.

Greedy: a few tokens at a time go in the block where the divergence from the dense model's outputs, on calibration
images without labels, grows least for the operations that it saves. What was tried on the way is kept for the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compressor._lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compressor.architectures import StackShapes
    from compressor.model.blueprint import Reduction
    from compressor.model.folder import ModelFolder
else:
    torch = lazy("torch")

_STEPS = 12
Counts = dict[int, int]
"""Patch tokens that leave each block in which some go, by index of the block."""


@dataclass(frozen=True)
class Room:
    """What a search may choose from.

    Attributes:
        blocks: indices of the blocks in which tokens may go.
        patches: patch tokens before the first block.
        leading: tokens that never go.
        half: whether at most half of the tokens can go in one block.
    """

    blocks: Sequence[int]
    patches: int
    leading: int
    half: bool

    def counts(self, gone: dict[int, int]) -> Counts:
        """Return the counts when so many go in each block, or as many as can: one token stays."""
        left, found = self.patches, {}
        for block in self.blocks:
            some = min(gone.get(block, 0), left // 2 if self.half else left - 1)
            if some:
                found[block] = left = left - some
        return found


def work(shapes: StackShapes, room: Room, counts: Counts) -> float:
    """Return the multiplications of all blocks on one image; what stands outside of them is left out."""
    total, tokens = 0.0, room.patches + room.leading
    for block, layer in enumerate(shapes.layers):
        before, middle, after = layer.residual
        heads = layer.num_attention_heads * shapes.head_dim
        total += tokens * heads * (3 * before + middle) + 2 * tokens**2 * heads
        tokens = counts[block] + room.leading if block in counts else tokens
        total += tokens * layer.intermediate_size * (middle + after)
    return total


def even(shapes: StackShapes, room: Room, budget: float) -> Counts:
    """Return counts of equal steps in all blocks that take at most the share `budget` of the operations."""
    most, counts = work(shapes, room, {}) * budget, {}
    for step in range(1, room.patches):
        counts = room.counts(dict.fromkeys(room.blocks, step))
        if work(shapes, room, counts) <= most:
            break
    return counts


def searched(
    shapes: StackShapes, room: Room, budget: float, loss: Callable[[Counts], float]
) -> list[tuple[Counts, float]]:
    """Return the path of a greedy search, from few tokens gone to the first counts within the budget, with losses.

    Args:
        shapes: of the blocks.
        room: what may be chosen.
        budget: share of the operations of all blocks that may be left, in (0, 1).
        loss: how far the model with such counts is from the dense one.
    """
    most, step = work(shapes, room, {}) * budget, max(room.patches // _STEPS, 1)
    gone: dict[int, int] = {}
    path: list[tuple[Counts, float]] = [({}, 0.0)]
    while work(shapes, room, path[-1][0]) > most:
        before, lost = work(shapes, room, path[-1][0]), path[-1][1]
        found = []
        for block in room.blocks:
            counts = room.counts({**gone, block: gone.get(block, 0) + step})
            if (saved := before - work(shapes, room, counts)) > 0:
                now = loss(counts)
                found.append(((now - lost) / saved, block, counts, now))
        if not found:
            break
        _, block, counts, now = min(found, key=lambda item: item[:2])
        gone[block] = gone.get(block, 0) + step
        path.append((counts, now))
    return path[1:]


class Tried:
    """A loss that remembers what it was asked for.

    Attributes:
        points: for each counts the share of the blocks' operations that they leave, and their loss; in order.
    """

    def __init__(self, shapes: StackShapes, room: Room, loss: Callable[[Counts], float]) -> None:
        """Ask `loss`, of a model of `shapes`."""
        self._shapes, self._room, self._loss = shapes, room, loss
        self.points: list[tuple[float, float]] = []

    def __call__(self, counts: Counts) -> float:
        """Return the loss of counts."""
        lost = self._loss(counts)
        self.points.append((work(self._shapes, self._room, counts) / work(self._shapes, self._room, {}), lost))
        return lost


class Divergence:
    """How far reduced models are from the dense one: mean KL divergence of their outputs on images, in nats."""

    def __init__(
        self, source: ModelFolder, images: Sequence[Tensor], reductions: Callable[[Counts], tuple[Reduction, ...]]
    ) -> None:
        """Run the dense model once; `reductions` are those of counts."""
        self._source, self._images, self._reductions = source, images, reductions
        dense = source.load()
        self._weights = dense.state_dict()
        self._dense = [dense(pixel_values=batch).logits.log_softmax(-1) for batch in images]

    def __call__(self, counts: Counts) -> float:
        """Return the divergence of the model with these counts."""
        blueprint = replace(self._source.blueprint, reductions=self._reductions(counts))
        model = self._source.with_blueprint(blueprint).skeleton()
        model.load_state_dict(self._weights, assign=True)
        total, images = 0.0, 0
        for batch, wanted in zip(self._images, self._dense, strict=True):
            found = model(pixel_values=batch).logits.log_softmax(-1)
            total += float((wanted.exp() * (wanted - found)).sum())
            images += len(batch)
        return total / images
