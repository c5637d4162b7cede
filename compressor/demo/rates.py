"""The learning rate of both trainings."""

from __future__ import annotations

import math


def warm_cosine(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate at a step: it rises to `peak` in `warmup` steps, then falls along a cosine.

    Args:
        step: counted from zero.
        steps: how many there are; behind the last one the rate is a hundredth of the highest.
        peak: highest rate.
        warmup: steps until then.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
