"""Plots for the HTML page, as inline SVG without a viewBox: x in percent, y in pixels.

So a plot takes the width that the page gives it and its text and strokes keep their size, on a phone as on a desk.
Colours come from classes, so that the page's light, dark and print palettes apply. Everything is described by a
`<title>` for the pointer and an `aria-label` for screen readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from compressor.report._layers import Dimension, Row, Step

_TICKS = 7


def bar(value: float, full: float, css: str, label: str) -> str:
    """Return one horizontal bar of length value / full on its track."""
    share = 0.0 if full <= 0 else min(max(value / full, 0.0), 1.0)
    return (
        f'<svg class="bar" width="100%" height="10" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>"
        f'<rect class="track" width="100%" height="10" rx="2"/>'
        f'<rect class="{css}" width="{_percent(share)}" height="10" rx="2"/></svg>'
    )


def stacked(parts: Sequence[tuple[str, float, str]]) -> str:
    """Return one bar made of (title, amount, class) parts, in proportion to their amounts."""
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return ""
    shapes, x = [], 0.0
    for title, amount, css in parts:
        width = amount / total
        shapes.append(
            f'<rect class="{css}" x="{_percent(x)}" width="{_percent(width)}" height="18">'
            f"<title>{escape(title)}</title></rect>"
        )
        x += width
    label = "Time by stage: " + ", ".join(title for title, _, _ in parts)
    return (
        f'<svg class="stack" width="100%" height="18" role="img" aria-label="{escape(label)}">{"".join(shapes)}</svg>'
    )


def widths(dimension: Dimension) -> str:
    """Return a column per layer: the dense width as a pale column, what was kept as a strong one before it."""
    rows, height = dimension.rows, 150
    top = max(max(row.before, row.after) for row in rows) or 1.0
    pitch = 1 / len(rows)
    gap = 0.0 if len(rows) > 80 else 0.12
    lines = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>' for y in (0.5, height / 2 + 0.5, height + 0.5)
    )
    columns = "".join(_column(row, top, (i + gap) * pitch, (1 - 2 * gap) * pitch, height) for i, row in enumerate(rows))
    every = -(-len(rows) // _TICKS)
    ticks = "".join(
        f'<text x="{_percent((i + 0.5) * pitch)}" y="{height + 18}" text-anchor="middle">{row.index}</text>'
        for i, row in enumerate(rows)
        if i % every == 0
    )
    kept = [row.after for row in rows]
    label = f"{dimension.name} by layer: {min(kept):g} to {max(kept):g} kept, at most {top:g} in the dense model"
    few = " few" if len(rows) < 9 else ""
    return (
        f'<div class="plot{few}"><div class="axis" aria-hidden="true">'
        f"<span>{top:g}</span><span>{top / 2:g}</span><span>0</span></div>"
        f'<svg width="100%" height="{height + 24}" role="img" aria-label="{escape(label)}">'
        f"{lines}{columns}{ticks}</svg></div>"
    )


def waterfall(step: Step, low: float, high: float, css: str, label: str) -> str:
    """Return the move of one step as a floating bar between two values on an axis from low to high."""
    span = (high - low) or 1.0
    start, end = sorted(((step.before - low) / span, (step.after - low) / span))
    return (
        f'<svg class="fall" width="100%" height="18" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>"
        f'<line class="grid" x1="0" x2="100%" y1="9" y2="9"/>'
        f'<rect class="{css}" x="{_percent(start)}" width="{_percent(end - start)}" height="14" y="2"/>'
        f'<line class="mark" x1="{_percent((step.after - low) / span)}" x2="{_percent((step.after - low) / span)}" '
        f'y1="0" y2="18"/></svg>'
    )


def _column(row: Row, top: float, x: float, width: float, height: int) -> str:
    before, after = height * row.before / top, height * row.after / top
    share = f", {100 * row.after / row.before:.1f} % kept" if row.before else ""
    title = f"layer {row.index}: {row.before:g} → {row.after:g}{share}"
    box = f'x="{_percent(x)}" width="{_percent(width)}"'
    return (
        f'<g><title>{escape(title)}</title><rect class="dense" {box} y="{height - before:.1f}" height="{before:.1f}"/>'
        f'<rect class="kept" {box} y="{height - after:.1f}" height="{after:.1f}"/></g>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3f}%"
