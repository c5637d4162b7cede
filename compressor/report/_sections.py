"""What the sections of the HTML page show, where more than a look-up in the report is needed to know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compressor.report import _format as show
from compressor.report._layers import Dimension, Step, dimensions, quality_chains
from compressor.report._plots import Columns, Move, Part, columns, move, stacked
from compressor.report.schema import PassEntry, Report, quotient


@dataclass(frozen=True)
class Bar:
    """A labelled bar; `share` is its length, 1 for the longest beside it."""

    label: str
    shown: str
    share: float


@dataclass(frozen=True)
class Saving:
    """One card: what was saved of something.

    Attributes:
        title: the kind of saving.
        what: of what.
        ratio: compressed over dense; None where it is not known.
        says: the ratio in words.
        bars: dense and compressed.
    """

    title: str
    what: str
    ratio: float | None = None
    says: str = ""
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Link:
    """One step of a chain: its text, its place on the axis, and whether it made the metric worse."""

    label: str
    title: str
    value: str
    change: str
    worse: bool
    move: Move


@dataclass(frozen=True)
class Chain:
    """How one metric went from the dense model (`start`) through the passes to the artifact."""

    label: str
    start: str
    links: list[Link]


@dataclass(frozen=True)
class Figure:
    """A dimension that a pass changed: what there is to say about it, and a plot where a sentence does not say all."""

    dimension: Dimension
    method: str
    note: str
    plot: Columns | None


def savings(report: Report) -> list[Saving]:
    """Return theoretical operations, stored bytes, and measured time: one card for each phase."""
    dense, compressed = report.dense, report.compressed
    return [
        _amount("Theoretical", "FLOPs per forward pass", dense.flops, compressed.flops, _operations),
        _amount("Stored", "bytes on disk", dense.bytes, compressed.bytes, show.size),
        *(_times(report) or [Saving("Measured", "median, this machine")]),
    ]


def chains(report: Report) -> list[Chain]:
    """Return which pass cost how much of the quality, where the passes tell."""
    shown = 3 if len(report.passes) > 1 else 1  # one pass is the cause of everything: one metric says it
    return [_chain(name, steps) for name, steps in list(quality_chains(report).items())[:shown]]


def figures(report: Report) -> list[Figure]:
    """Return every dimension that a pass changed."""
    return [_figure(entry, dimension) for entry in report.passes for dimension in dimensions(entry.layers)]


def stages(report: Report) -> list[Part]:
    """Return how long each stage of the run took, as parts of one bar."""
    known = [(name, value) for name, value in report.seconds.items() if name != "total" and value is not None]
    return stacked([(f"{name} {show.seconds(value)}", value) for name, value in known])


def cost(report: Report) -> str:
    """Return the time of the whole run and its peak memory, as far as they are known."""
    facts = []
    if (total := report.seconds.get("total")) is not None:
        facts.append(f"{show.seconds(total)} in all")
    if report.peak_memory_bytes is not None:
        facts.append(f"{show.size(report.peak_memory_bytes)} of memory at its peak")
    return ", ".join(facts)


def _operations(value: float | None) -> str:
    """Return FLOPs without their name, which the card's heading says."""
    return show.flops(value).removesuffix("FLOPs")


def _amount(
    title: str, what: str, dense: int | None, compressed: int | None, form: Callable[[float | None], str]
) -> Saving:
    """Return the card of an amount that dense and compressed both have."""
    ratio = quotient(compressed, dense)
    if ratio is None or dense is None or compressed is None:
        return Saving(title, what)
    bars = _bars({"dense": (dense, form(dense)), "compressed": (compressed, form(compressed))})
    return Saving(title, what, ratio, f"{show.ratio(ratio)} the dense model", bars)


def _times(report: Report) -> list[Saving]:
    """Return a card for each phase that was timed."""
    cards = []
    for phase, old in report.dense.latency_ms.items():
        new, speedup = report.compressed.latency_ms.get(phase), report.ratios.speedup.get(phase)
        ratio = quotient(new, old)
        if ratio is None or old is None or new is None:
            continue
        said = f"{show.ratio(speedup)} as fast" if speedup is not None else f"{show.ratio(ratio)} the time"
        bars = _bars({"dense": (old, show.milliseconds(old)), "compressed": (new, show.milliseconds(new))})
        cards.append(Saving(f"Measured: {phase}", "median, this machine", ratio, said, bars))
    return cards


def _bars(values: Mapping[str, tuple[float, str]]) -> tuple[Bar, ...]:
    """Return labelled bars on one scale."""
    full = max(value for value, _ in values.values())
    return tuple(Bar(label, shown, value / full) for label, (value, shown) in values.items())


def _chain(name: str, steps: list[Step]) -> Chain:
    """Return the chain that attributes the change of a metric to the passes and the export."""
    values = [steps[0].before, *(step.after for step in steps)]
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 1.0
    return Chain(
        label=show.metric(name).label,
        start=show.metric_value(name, steps[0].before),
        links=[
            Link(
                label=step.label,
                title=f"{step.label}: {show.metric_value(name, step.before)} to {show.metric_value(name, step.after)}",
                value=show.metric_value(name, step.after, unit=False),
                change=show.metric_step(name, step.before, step.after),
                worse=(step.after > step.before) == (show.metric(name).better == "lower"),
                move=move(step, low - margin, high + margin),
            )
            for step in steps
        ],
    )


def _figure(entry: PassEntry, dimension: Dimension) -> Figure:
    rows, structural = dimension.rows, entry.family in ("structure", "")
    before, after = sum(row.before for row in rows), sum(row.after for row in rows)
    share = f", {100 * after / before:.1f} %" if before else ""
    if dimension.uniform:
        note = f"In every one of {len(rows)} layers: {show.number(rows[0].before)} → {show.number(rows[0].after)}."
    elif structural:
        note = f"{after:,.0f} of {before:,.0f} kept over all layers{share}."
    else:  # widths add up over layers; bits and tokens do not
        note = f"On average {before / len(rows):.3g} → {after / len(rows):.3g}{share}."
    drawn = structural or not dimension.uniform
    return Figure(dimension, entry.name, note, columns(dimension) if drawn else None)
