"""What the sections of the HTML page show, where more than a look-up in the report is needed to know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compressor.report import _format as show
from compressor.report._layers import Dimension, Step, dimensions, quality_chains
from compressor.report._plots import Columns, Move, Part, columns, move, stacked
from compressor.report.pass_schema import PassEntry
from compressor.report.schema import Report, quotient


@dataclass(frozen=True)
class Bar:
    """A labelled bar; `share` is its length, 1 for the longest beside it."""

    label: str
    shown: str
    share: float


@dataclass(frozen=True)
class Limit:
    """A bound of the recipe on a card's bars: where it lies, in shares of the longest, and what it says."""

    share: float
    label: str


@dataclass(frozen=True)
class Saving:
    """One card: what was saved of something.

    Attributes:
        title: the kind of saving.
        what: of what.
        ratio: compressed over dense; None where it is not known.
        says: the ratio in words.
        bars: dense and compressed.
        end: the figure at the end of the bars' axis, which begins at 0.
        limit: the bound of the recipe, where there is one.
    """

    title: str
    what: str
    ratio: float | None = None
    says: str = ""
    bars: tuple[Bar, ...] = ()
    end: str = ""
    limit: Limit | None = None


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
        _amount(
            "Theoretical",
            "FLOPs per forward pass",
            (dense.flops, compressed.flops),
            _operations,
            _largest(report, {"flops_ratio": dense.flops}),
        ),
        _amount(
            "Stored",
            "bytes on disk",
            (dense.bytes, compressed.bytes),
            show.size,
            _largest(report, {"size_ratio": dense.bytes, "bytes": 1}),
        ),
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


def _largest(report: Report, bounds: Mapping[str, float | None]) -> float | None:
    """Return the largest amount that the recipe allows, None where it allows any.

    Args:
        report: its checks hold the bounds.
        bounds: name of a bound -> the amount that a bound of 1 would mean.
    """
    limits = {check.name: check.bound.max for check in report.checks if check.bound is not None}
    found = [(limits.get(f"bounds.{name}"), unit) for name, unit in bounds.items()]
    return min((limit * unit for limit, unit in found if limit is not None and unit is not None), default=None)


def _longest(report: Report, phase: str, dense: float) -> float | None:
    """Return the longest time of a phase that the recipe allows, None where it allows any."""
    least = {check.name: check.bound.min for check in report.checks if check.bound is not None}
    faster = [least.get(name) for name in ("bounds.speedup", f"bounds.speedup_{phase}")]
    times = [dense / bound for bound in faster if bound]
    stated = _largest(report, {f"latency_{phase}_ms": 1})
    return min([*times, *([stated] if stated is not None else [])], default=None)


def _amount(
    title: str,
    what: str,
    amounts: tuple[int | None, int | None],
    form: Callable[[float | None], str],
    largest: float | None,
) -> Saving:
    """Return the card of an amount that dense and compressed both have, and the largest that is allowed."""
    dense, compressed = amounts
    ratio = quotient(compressed, dense)
    if ratio is None or dense is None or compressed is None:
        return Saving(title, what)
    bars = _bars({"dense": dense, "compressed": compressed}, form, largest)
    return Saving(title, what, ratio, f"{show.ratio(ratio)} the dense model", *bars)


def _times(report: Report) -> list[Saving]:
    """Return a card for each phase that was timed."""
    cards = []
    for phase, old in report.dense.latency_ms.items():
        new, speedup = report.compressed.latency_ms.get(phase), report.ratios.speedup.get(phase)
        ratio = quotient(new, old)
        if ratio is None or old is None or new is None:
            continue
        said = f"{show.ratio(speedup)} as fast" if speedup is not None else f"{show.ratio(ratio)} the time"
        bars = _bars({"dense": old, "compressed": new}, show.milliseconds, _longest(report, phase, old))
        cards.append(Saving(f"Measured: {phase}", "median, this machine", ratio, said, *bars))
    return cards


def _bars(
    values: Mapping[str, float], form: Callable[[float | None], str], largest: float | None
) -> tuple[tuple[Bar, ...], str, Limit | None]:
    """Return labelled bars on one scale, the figure at its end, and the largest that is allowed on the same scale."""
    full = max([*values.values(), *([largest] if largest is not None else [])])
    bars = tuple(Bar(label, form(value), value / full) for label, value in values.items())
    return bars, form(full), None if largest is None else Limit(largest / full, f"allowed: {form(largest)}")


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
    return Figure(dimension, entry.label, note, columns(dimension) if drawn else None)
