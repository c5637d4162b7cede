"""Where the shapes of the page's plots lie; `templates/plots.html` draws them.

A plot is inline SVG without a viewBox: x in shares of the width, y in pixels. So it takes the width that the page gives
it and its text and strokes keep their size, on a phone as on a desk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.report import _format as show
from compressor.report._layers import Dimension, Row, Step

HEIGHT = 150
"""Pixels of a plot of columns, without its labels; the style sheet gives the axis the same."""
_TICKS = 7


@dataclass(frozen=True)
class Part:
    """One part of a stacked bar: from `x`, `width` long, in shares of the bar."""

    title: str
    x: float
    width: float


@dataclass(frozen=True)
class Column:
    """One layer: a pale column as high as what it had, a strong one before it as high as what was kept.

    Attributes:
        title: its figures in words.
        x: left edge, in shares of the plot.
        width: in shares of the plot.
        before: height in pixels of the pale column.
        after: height in pixels of the strong one.
    """

    title: str
    x: float
    width: float
    before: float
    after: float


@dataclass(frozen=True)
class Columns:
    """A plot of one dimension over the layers.

    Attributes:
        label: what it shows, for screen readers.
        top: the figure at the upper end of the axis.
        columns: one for each layer.
        ticks: place (share of the plot) and index of the layers that the axis names.
    """

    label: str
    top: float
    columns: list[Column]
    ticks: list[tuple[float, int]]


@dataclass(frozen=True)
class Move:
    """A floating bar between two values of an axis, in shares of it; `end` is where the later value lies."""

    x: float
    width: float
    end: float


def stacked(amounts: Sequence[tuple[str, float]]) -> list[Part]:
    """Return the parts of one bar in proportion to their amounts; none where there is nothing to divide."""
    total = sum(amount for _, amount in amounts)
    parts, x = [], 0.0
    for title, amount in amounts if total > 0 else ():
        parts.append(Part(title, x, amount / total))
        x += amount / total
    return parts


def columns(dimension: Dimension) -> Columns:
    """Return a column for each layer."""
    rows = dimension.rows
    top = max(max(row.before, row.after) for row in rows) or 1.0
    pitch = 1 / len(rows)
    gap = 0.0 if len(rows) > 80 else 0.12
    kept = [show.number(value) for value in (min(r.after for r in rows), max(r.after for r in rows))]
    every = -(-len(rows) // _TICKS)
    return Columns(
        label=f"{dimension.name} by layer: {' to '.join(kept)} kept, at most {show.number(top)} in the dense model",
        top=top,
        columns=[_column(row, top, (i + gap) * pitch, (1 - 2 * gap) * pitch) for i, row in enumerate(rows)],
        ticks=[((i + 0.5) * pitch, row.index) for i, row in enumerate(rows) if i % every == 0],
    )


def move(step: Step, low: float, high: float) -> Move:
    """Return the move of one step on an axis from low to high."""
    span = (high - low) or 1.0
    start, end = sorted(((step.before - low) / span, (step.after - low) / span))
    return Move(start, end - start, (step.after - low) / span)


def percent(share: float) -> str:
    """Return a share of a plot as SVG states it."""
    return f"{100 * share:.3f}%"


def _column(row: Row, top: float, x: float, width: float) -> Column:
    share = f", {100 * row.after / row.before:.1f} % kept" if row.before else ""
    title = f"layer {row.index}: {show.number(row.before)} → {show.number(row.after)}{share}"
    return Column(title, x, width, HEIGHT * row.before / top, HEIGHT * row.after / top)
