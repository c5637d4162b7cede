"""The sections of the HTML page. Each returns HTML, or an empty string when the report holds nothing for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compressor.report import _format as show
from compressor.report import _svg
from compressor.report._layers import Step, dimensions, quality_chains
from compressor.report._page import table, text
from compressor.report.schema import Report, quotient

_UNKNOWN = "not known"


def savings(report: Report) -> str:
    """Return the cards: theoretical operations, stored bytes, and measured time, one card for each phase."""
    dense, compressed = report.dense, report.compressed
    cards = [
        ("Theoretical", "FLOPs per forward pass", _amount(dense.flops, compressed.flops, _operations)),
        ("Stored", "bytes on disk", _amount(dense.bytes, compressed.bytes, show.size)),
        *_times(report),
    ]
    parts = [
        f'<article class="card"><h3>{text(title)}</h3><p class="what">{text(what)}</p>{content}</article>'
        for title, what, content in cards
    ]
    return f'<div class="cards">{"".join(parts)}</div>'


def quality(report: Report) -> str:
    """Return the table of metrics and, where the passes tell, which of them cost how much."""
    rows = []
    for name in show.metric_names(report):
        old, new = report.dense.metrics.get(name), report.compressed.metrics.get(name)
        facts = show.metric(name)
        meaning = "; ".join(part for part in (facts.meaning, f"{facts.better} is better") if part)
        values = [show.metric_value(name, old), show.metric_value(name, new), show.metric_change(name, old, new)]
        rows.append([f'{text(facts.label)}<small class="wide">{text(meaning)}</small>', *map(text, values)])
    if not rows:
        return "<p>No evaluation data was given, so the quality of this artifact is not known.</p>"
    result = table(["metric", "dense", "compressed", "change"], rows, numbers=(1, 2, 3))
    chains = quality_chains(report)
    shown = 3 if len(report.passes) > 1 else 1  # one pass is the cause of everything: one metric says it
    return result + "".join(_chain(name, steps) for name, steps in list(chains.items())[:shown])


def speed(report: Report) -> str:
    """Return the latencies, and the speed-up beside what operations or bytes alone would give."""
    by_flops = quotient(1.0, report.ratios.flops)
    by_bytes = quotient(1.0, report.ratios.bytes)
    rows = []
    for phase in dict.fromkeys([*report.dense.latency_ms, *report.compressed.latency_ms]):
        old, new = report.dense.latency_ms.get(phase), report.compressed.latency_ms.get(phase)
        speedup = report.ratios.speedup.get(phase)
        cells = [show.milliseconds(old), show.milliseconds(new), show.ratio(speedup)]
        rows.append([text(phase), *map(text, [*cells, show.ratio(by_flops), show.ratio(by_bytes)])])
    if not rows:
        return ""
    heads = ["phase", "dense", "compressed", "speed-up", "by FLOPs alone", "by bytes alone"]
    return table(heads, rows, numbers=(1, 2, 3, 4, 5), wide=(4, 5))


def widths(report: Report) -> str:
    """Return a plot for every dimension that a pass changed, and a sentence for what is the same everywhere."""
    parts = []
    for entry in report.passes:
        structural = entry.family in ("structure", "")
        for dimension in dimensions(entry.layers):
            title = f"<h3>{text(dimension.name)} <small>{text(entry.name)}</small></h3>"
            first = dimension.rows[0]
            if dimension.uniform:
                note = f"<p>In every one of {len(dimension.rows)} layers: {first.before:g} → {first.after:g}.</p>"
            else:
                before, after = sum(r.before for r in dimension.rows), sum(r.after for r in dimension.rows)
                share = f", {100 * after / before:.1f} %" if before else ""
                note = f"<p>{after:,.0f} of {before:,.0f} kept over all layers{share}.</p>"
                if not structural:  # widths add up over layers; bits and tokens do not
                    count = len(dimension.rows)
                    note = f"<p>On average {before / count:.3g} → {after / count:.3g}{share}.</p>"
            drawn = structural or not dimension.uniform
            plot = _svg.widths(dimension) + _figures(dimension.rows) if drawn else ""
            parts.append(f'<div class="figure">{title}{note}{plot}</div>')
    return "".join(parts)


def passes(report: Report) -> str:
    """Return the table of passes."""
    rows = []
    for entry in report.passes:
        saved = quotient(entry.parameters_after, entry.parameters_before)
        cells = [
            f"{text(entry.name)}<small>{text(entry.family)}</small>",
            show.count(entry.parameters_before),
            show.count(entry.parameters_after),
            "none" if saved == 1 else show.saving(saved),
            show.seconds(entry.seconds),
        ]
        rows.append(cells)
    heads = ["pass", "parameters before", "after", "change", "time"]
    notes = "".join(f"<li>{text(entry.name)}: {text(note)}</li>" for entry in report.passes for note in entry.notes)
    listed = f"<ul>{notes}</ul>" if notes else ""
    return table(heads, rows, numbers=(1, 2, 3, 4), wide=(1, 2)) + listed if rows else ""


def checks(report: Report) -> str:
    """Return the table of checks, failed ones first, and the list of those that only say yes."""
    measured, plain = show.passed_checks(report)
    rows = []
    for check in [*report.failed, *measured]:
        mark = '<span class="pass">passed</span>' if check.passed else '<span class="fail">failed</span>'
        reason = "" if check.passed else f"<small>{text(show.reason_text(check))}</small>"
        value, bound = show.quantity(check.value, check.unit), show.bound_text(check.bound, check.unit)
        rows.append([f"<code>{text(check.name)}</code>{reason}", mark, text(value), text(bound)])
    result = table(["check", "result", "value", "required"], rows, numbers=(2, 3), wide=(3,)) if rows else ""
    names = ", ".join(f"<code>{text(check.name)}</code>" for check in plain)
    also = "Also" if rows else "These"
    return result + (f'<p class="also">{also} <span class="pass">passed</span>: {names}.</p>' if names else "")


def run(report: Report) -> str:
    """Return how long each stage took, and the peak memory."""
    stages = [(name, value) for name, value in report.seconds.items() if name != "total" and value is not None]
    parts = [(f"{name} {show.seconds(value)}", value, f"s{i % 6}") for i, (name, value) in enumerate(stages)]
    facts = []
    if (total := report.seconds.get("total")) is not None:
        facts.append(f"{show.seconds(total)} in all")
    if report.peak_memory_bytes is not None:
        facts.append(f"{show.size(report.peak_memory_bytes)} of memory at its peak")
    lead = f'<p class="lead">{", ".join(facts)}.</p>' if facts else ""
    swatch = '<svg width="12" height="12" aria-hidden="true"><rect class="{}" width="12" height="12" rx="2"/></svg>'
    keys = "".join(f"<li>{swatch.format(css)}{text(title)}</li>" for title, _, css in parts)
    return lead + (f'{_svg.stacked(parts)}<ul class="key">{keys}</ul>' if keys else "")


def environment(report: Report) -> str:
    """Return what the run ran on, as a list of names and values."""
    items = [
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in show.flat(report.environment) if value != ""
    ]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _operations(value: float | None) -> str:
    """Return FLOPs without their name, which the card's heading says."""
    return show.flops(value).removesuffix("FLOPs")


def _amount(dense: int | None, compressed: int | None, form: Callable[[float | None], str]) -> str:
    """Return the body of a card for an amount that dense and compressed both have."""
    ratio = quotient(compressed, dense)
    if ratio is None or dense is None or compressed is None:
        return f'<p class="big none">{_UNKNOWN}</p>'
    return _big(show.saving(ratio), ratio, f"{show.ratio(ratio)} the dense model") + _bars(
        {"dense": (dense, form(dense)), "compressed": (compressed, form(compressed))}
    )


def _times(report: Report) -> list[tuple[str, str, str]]:
    """Return title, subtitle and body of a card for each phase that was timed."""
    cards = []
    for phase, old in report.dense.latency_ms.items():
        new, speedup = report.compressed.latency_ms.get(phase), report.ratios.speedup.get(phase)
        ratio = quotient(new, old)
        if ratio is None or old is None or new is None:
            continue
        said = f"{show.ratio(speedup)} as fast" if speedup is not None else f"{show.ratio(ratio)} the time"
        bars = {"dense": (old, show.milliseconds(old)), "compressed": (new, show.milliseconds(new))}
        cards.append(
            (f"Measured: {phase}", "median, this machine", _big(show.saving(ratio), ratio, said) + _bars(bars))
        )
    return cards or [("Measured", "median, this machine", f'<p class="big none">{_UNKNOWN}</p>')]


def _big(figure: str, ratio: float, says: str) -> str:
    worse = " worse" if ratio > 1 else ""
    return f'<p class="big{worse}">{text(figure)}</p><p class="says">{text(says)}</p>'


def _bars(values: Mapping[str, tuple[float, str]]) -> str:
    """Return labelled bars on one scale."""
    full = max(value for value, _ in values.values())
    rows = [
        f"<span>{label}</span><span>{text(shown)}</span>"
        f"{_svg.bar(value, full, 'dense' if label == 'dense' else 'now', f'{label}: {shown}')}"
        for label, (value, shown) in values.items()
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def _chain(name: str, steps: list[Step]) -> str:
    """Return the plot that attributes the change of a metric to the passes and the export."""
    facts = show.metric(name)
    values = [steps[0].before, *(step.after for step in steps)]
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 1.0
    rows = []
    for step in steps:
        worse = (step.after > step.before) == (facts.better == "lower")
        move = show.metric_step(name, step.before, step.after)
        label = f"{step.label}: {show.metric_value(name, step.before)} to {show.metric_value(name, step.after)}"
        plot = _svg.waterfall(step, low - margin, high + margin, "loss" if worse else "gain", label)
        value = f"{text(show.metric_value(name, step.after, unit=False))} <small>{text(move)}</small>"
        rows.append(f'<div class="link"><span class="name">{text(step.label)}</span>{plot}<span>{value}</span></div>')
    start = f"From {show.metric_value(name, steps[0].before)} in the dense model, measured after each step."
    return f'<div class="figure"><h3>Where {text(facts.label)} changed</h3><p>{text(start)}</p>{"".join(rows)}</div>'


def _figures(rows: list[Any]) -> str:
    """Return the figures behind a plot, folded away."""
    cells = [[str(r.index), f"{r.before:g}", f"{r.after:g}", show.saving(quotient(r.after, r.before))] for r in rows]
    return (
        f"<details><summary>Figures</summary>{table(['layer', 'dense', 'kept', 'change'], cells, (1, 2, 3))}</details>"
    )
