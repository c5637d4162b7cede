"""How many channels each block keeps, when all blocks together keep an exact number.

Widths are multiples of a number that the target's kernels like, and the total is the multiple nearest to the share
asked for; so the parameters after a pass are known before any data is read, whichever blocks they end up in.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.errors import ModelError


@dataclass(frozen=True)
class WidthBudget:
    """How many channels there are and how many stay.

    Attributes:
        before: channels per block.
        total: channels that stay in all blocks together, a multiple of `multiple`.
        multiple: widths are multiples of it.
        floor: least channels that a block keeps, a multiple of `multiple`.
    """

    before: tuple[int, ...]
    total: int
    multiple: int
    floor: int

    @property
    def most(self) -> tuple[int, ...]:
        """The largest allowed width of each block."""
        return tuple(width // self.multiple * self.multiple for width in self.before)


def width_budget(
    before: Sequence[int], sparsity: float, *, multiple: int = 8, least: float = 0.05, alike: bool = False
) -> WidthBudget:
    """Return the budget that removes a share `sparsity` of all channels.

    Args:
        before: channels per block.
        sparsity: share of channels to remove, in (0, 1).
        multiple: widths are multiples of it.
        least: share of its channels that every block keeps at least.
        alike: round every block's width, so that blocks that were alike stay alike; else the sum is rounded.

    Raises:
        ModelError: a block is narrower than `multiple`, nothing would be removed, or the floors do not leave room.
    """
    narrowest = min(before)
    if narrowest < multiple:
        raise ModelError(
            f"round_to: a block has {narrowest} FFN channels, fewer than round_to = {multiple}",
            hint=f"Set round_to to at most {narrowest}.",
        )
    floor = min(math.ceil(max(least * narrowest, 1) / multiple), narrowest // multiple) * multiple
    parts = list(before) if alike else [sum(before)]
    total = sum(round(part * (1 - sparsity) / multiple) * multiple for part in parts)
    total = min(total, sum(width // multiple * multiple for width in before))
    if total >= sum(before):
        raise ModelError(
            f"sparsity {sparsity:g} of {sum(before)} FFN channels is less than round_to = {multiple}: nothing would go",
            hint="Raise sparsity or lower round_to.",
        )
    if total < floor * len(before):
        raise ModelError(
            f"sparsity {sparsity:g} leaves {total} FFN channels for {len(before)} blocks of at least {floor}",
            hint="Lower sparsity, least or round_to.",
        )
    return WidthBudget(tuple(before), total, multiple, floor)


def proportional(budget: WidthBudget, shares: Sequence[float]) -> list[int]:
    """Return widths in proportion to `shares`: clipped to the budget's bounds, largest remainders rounded up.

    Raises:
        ModelError: a share is negative or not finite.
    """
    if any(not math.isfinite(share) or share < 0 for share in shares):
        raise ModelError(f"shares of blocks must be finite and not negative, not {[float(f'{s:.3g}') for s in shares]}")
    step, most = budget.multiple, budget.most
    wanted = _fill(budget, [max(share, 1e-12) for share in shares])
    widths = [max(budget.floor, int(w / step + 1e-9) * step) for w in wanted]
    # Largest remainder first; ties go to earlier blocks.
    while sum(widths) != budget.total:
        up = sum(widths) < budget.total
        rooms = [i for i in range(len(widths)) if (widths[i] < most[i] if up else widths[i] > budget.floor)]
        best = max(rooms, key=lambda i: ((wanted[i] - widths[i]) * (1 if up else -1), -i))
        widths[best] += step if up else -step
    return widths


def _fill(budget: WidthBudget, shares: Sequence[float]) -> list[float]:
    """Scale shares to the total, holding what would pass a bound at the bound (water filling by bisection)."""

    def widths(level: float) -> list[float]:
        return [min(max(level * s, budget.floor), m) for s, m in zip(shares, budget.most, strict=True)]

    low, high = 0.0, max(budget.most) / min(shares)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(widths(middle)) < budget.total else (low, middle)
    return widths(high)


def uniform(budget: WidthBudget) -> list[int]:
    """Return the same share for every block, as nearly as rounding lets it be."""
    return proportional(budget, [float(width) for width in budget.before])


def angular(budget: WidthBudget, distances: Sequence[float], temperature: float = 1.0) -> list[int]:
    """Return widths by how far each block turns the residual stream (CFSP, arXiv 2409.13199, section 3.2).

    Args:
        budget: what stays.
        distances: mean over tokens of arccos(cos(x_in, x_out)) / π of each block, in [0, 1]. The paper's code sums over
            tokens and divides by a fixed 1e4; the mean does not depend on how much calibration data there is.
        temperature: spread over which the sigmoid tells blocks apart, in standard deviations of the distances; high
            values approach `uniform`.
    """
    centre = sum(distances) / len(distances)
    spread = math.sqrt(sum((d - centre) ** 2 for d in distances) / len(distances))
    if spread == 0:
        return uniform(budget)
    shares = [1 / (1 + math.exp(-(d - centre) / (spread * temperature))) for d in distances]
    return proportional(budget, [s * width for s, width in zip(shares, budget.before, strict=True)])


def greedy(budget: WidthBudget, losses: Sequence[Sequence[float]]) -> list[int]:
    """Return widths that lose least in sum, each block's loss being known at every width.

    Args:
        budget: what stays.
        losses: per block, the loss (in units that blocks share) after its 1, 2, … cheapest channels have gone, down to
            the floor.

    The cheapest slope of the lower convex hull of each curve goes next: on convex curves that is the optimum.
    """
    widths = list(budget.before)
    segments = [_hull(curve, budget, i) for i, curve in enumerate(losses)]
    queue = [(slopes[0][0], i, 0) for i, slopes in enumerate(segments) if slopes]
    heapq.heapify(queue)
    excess = sum(widths) - budget.total
    # A block whose width is no multiple is first cut to one, whatever that costs.
    for i, (width, most) in enumerate(zip(widths, budget.most, strict=True)):
        widths[i] = most
        excess -= width - most
    while excess > 0:
        _, i, position = heapq.heappop(queue)
        take = min(segments[i][position][1], excess)
        widths[i] -= take
        excess -= take
        if position + 1 < len(segments[i]):
            heapq.heappush(queue, (segments[i][position + 1][0], i, position + 1))
    return widths


def _hull(curve: Sequence[float], budget: WidthBudget, block: int) -> list[tuple[float, int]]:
    """Return (slope, channels) of the lower convex hull of a block's loss over multiples of removed channels."""
    start = budget.before[block] - budget.most[block]
    ends = range(start, budget.before[block] - budget.floor + 1, budget.multiple)
    hull: list[tuple[int, float]] = []
    for gone in ends:
        point = (gone, float(curve[gone - 1]) if gone else 0.0)
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(_slope(a, b), b[0] - a[0]) for a, b in zip(hull, hull[1:], strict=False)]


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
