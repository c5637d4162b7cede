"""How much of the calibration data a walk looks at: strides that leave enough tokens, and leading samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from compressor.data.kinds import Batches

if TYPE_CHECKING:
    from compressor.architectures import StackShapes
    from compressor.walk.walk import Walk

# No model is calibrated on fewer tokens than this, if there are as many.
LEAST_TOKENS = 16384


def stride(walk: Walk, tokens_per_channel: int) -> int:
    """Return n such that every n-th calibration batch holds about enough tokens for the widest FFN."""
    return min(thinning(count_tokens(walk), walk.source.shapes, tokens_per_channel), len(walk.batches))


def thinning(tokens: int, shapes: StackShapes, tokens_per_channel: int) -> int:
    """Return n such that one n-th of `tokens` is about enough for the widest FFN."""
    width = max(layer.intermediate_size for layer in shapes.layers)
    return max(1, tokens // max(tokens_per_channel * width, LEAST_TOKENS))


def count_tokens(walk: Walk) -> int:
    """Return how many tokens (or image patches) the calibration batches hold, by the first batch's size."""
    first = next(iter(walk.batches))
    array = next(iter(first.values()))
    patches = getattr(walk.source.config, "patch_size", None)
    per_batch = array.shape[0] * (array.shape[-1] // patches) ** 2 if patches else array.size
    return int(per_batch) * len(walk.batches)


@contextmanager
def limited(walk: Walk, samples: int) -> Iterator[None]:
    """While entered, the walk sees only the leading batches that hold `samples` samples (all, if there are fewer)."""
    every, seen, count = walk.batches, 0, 0
    for inputs in every:
        if seen >= samples:
            break
        seen, count = seen + len(next(iter(inputs.values()))), count + 1
    walk.batches = Batches(lambda: islice(iter(every), count), count)
    try:
        yield
    finally:
        walk.batches = every
