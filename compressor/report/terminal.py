"""The report, and the answers of the other commands, as tables for a terminal.

Everything that comes from a model or a recipe is printed as plain text: no console markup, no control characters.
Below `NARROW` columns the tables drop their side columns and wrap; nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from compressor.report import _format as show
from compressor.report._tables import NARROW, cell, figure_table, fold, grid
from compressor.report._views import print_dimensions, render_eval, render_inspect, render_plan, render_timing
from compressor.report.pass_schema import PassEntry
from compressor.report.schema import Check, Report, check_report

__all__ = ["render_eval", "render_inspect", "render_plan", "render_report", "render_timing"]


def render_report(report: Mapping[str, Any], console: Console, *, folder: Path | None = None) -> None:
    """Print the verdict, the figures of dense and compressed side by side, the passes and the checks.

    Args:
        report: a version 1 report.
        console: where to print; its width decides the layout.
        folder: the artifact folder, named at the end with the report in it.

    Raises:
        VerificationError: `report` is not a version 1 report.
    """
    facts = check_report(report)
    _print_head(facts, console)
    _print_figures(facts, console)
    _print_passes(facts, console)
    _print_checks(facts, console)
    _print_tail(facts, console, folder)


def _print_head(report: Report, console: Console) -> None:
    word, style = ("PASSED", "bold green") if report.passed else ("FAILED", "bold red")
    line = Text.assemble((word, style), "  ", (show.one_line(report.model.id), "bold"))
    if report.model.task:
        line.append(f" · {show.one_line(report.model.task)}")
    console.print(line, soft_wrap=False)
    sentence = show.verdict_text(report)
    console.print(Text(sentence[0].upper() + sentence[1:]))
    for note in report.notes:
        console.print(Text(f"Note: {show.one_line(note)}", "yellow"))
    console.print()


def _print_figures(report: Report, console: Console) -> None:
    dense, compressed, ratios = report.dense, report.compressed, report.ratios
    wide = console.width >= NARROW
    table = figure_table("dense", "compressed", "ratio")
    rows = [
        ("parameters", show.count, dense.parameters, compressed.parameters, ratios.parameters),
        ("bytes stored" if wide else "bytes", show.size, dense.bytes, compressed.bytes, ratios.bytes),
        ("FLOPs, theoretical" if wide else "FLOPs", show.flops, dense.flops, compressed.flops, ratios.flops),
    ]
    for label, form, before, after, ratio in rows:
        if before is not None or after is not None:
            table.add_row(cell(label), form(before), form(after), show.ratio(ratio))
    table.add_section()
    for name in show.metric_names(report):
        old, new = dense.metrics.get(name), compressed.metrics.get(name)
        row = (show.metric_value(name, old), show.metric_value(name, new), show.metric_change(name, old, new))
        table.add_row(cell(show.metric(name).label), *row)
    table.add_section()
    for phase in show.phases(report):
        old, new = dense.latency_ms.get(phase), compressed.latency_ms.get(phase)
        speedup = report.ratios.speedup.get(phase)
        faster = f"{show.ratio(speedup)} as fast" if speedup is not None else show.DASH
        label = f"{phase}, measured" if wide else phase
        table.add_row(cell(label), show.milliseconds(old), show.milliseconds(new), faster)
    if table.row_count:
        console.print(table)
        console.print()


def _print_passes(report: Report, console: Console) -> None:
    if not report.passes:
        return
    wide = console.width >= NARROW
    heads = ["pass", *(["family"] if wide else []), "parameters", *(["quality after"] if wide else []), "time"]
    table = grid(*heads, right=("time",))
    for entry in report.passes:
        change = show.DASH
        if entry.parameters_before is not None and entry.parameters_after is not None:
            change = f"{show.count(entry.parameters_before)} → {show.count(entry.parameters_after)}"
        row = [cell(entry.label), fold(change), fold(show.seconds(entry.seconds))]
        if wide:
            row[1:1] = [cell(entry.family)]
            row[3:3] = [cell(_quality(entry))]
        table.add_row(*row)
    console.print(table)
    for entry in report.passes:
        print_dimensions(entry.label, entry.layers, console)
        for note in entry.notes:
            console.print(cell(f"{entry.label}: {note}"))
    console.print()


def _quality(entry: PassEntry) -> str:
    """Return the most telling metric after a pass."""
    for name in [*show.METRICS, *entry.quality_after]:
        if name in entry.quality_after:
            return f"{show.metric(name).label} {show.metric_value(name, entry.quality_after[name])}"
    return show.DASH


def _print_checks(report: Report, console: Console) -> None:
    failed = report.failed
    if failed:
        table = grid("", "check", header=False)
        for check in failed:
            table.add_row(Text("FAIL", style="bold red"), _failure(check))
        console.print(table)
        console.print()
    measured, plain = show.passed_checks(report)
    wide = console.width >= NARROW
    if measured:
        table = grid("", "check", "value", *(["required"] if wide else []))
        for check in measured:
            row = [Text("pass", style="green"), cell(check.name), fold(show.quantity(check.value, check.unit))]
            if wide:
                row.append(fold(show.bound_text(check.bound, check.unit)))
            table.add_row(*row)
        console.print(table)
        console.print()
    if unjudged := show.unjudged_checks(report):
        table = grid("", "check", header=False)
        for check in unjudged:
            table.add_row(Text("skip", style="yellow"), _failure(check))
        console.print(table)
        console.print()
    if plain:
        names = ", ".join(show.one_line(check.name) for check in plain)
        table = grid("", "checks", header=False)
        table.add_row(Text("pass", style="green"), fold(names))
        console.print(table)
        console.print()


def _failure(check: Check) -> Text:
    """Return a check, its figures and its reason, each on a line of its own: readable at any width."""
    lines = Text(show.one_line(check.name), style="bold", overflow="fold")
    figures, reason = show.shortfall(check), show.one_line(check.reason)
    for line in (figures, reason or ("" if figures else show.reason_text(check))):
        if line:
            lines.append(f"\n{line}", style="not bold")
    return lines


def _print_tail(report: Report, console: Console, folder: Path | None) -> None:
    cost = []
    if (total := report.seconds.get("total")) is not None:
        cost.append(f"took {show.seconds(total)}")
    if report.peak_memory_bytes is not None:
        cost.append(f"peak memory {show.size(report.peak_memory_bytes)}")
    if cost:
        text = ", ".join(cost)
        console.print(Text(text[0].upper() + text[1:]))
    if folder is not None:  # paths stay on one line, so that they can be clicked and copied
        console.print(Text(f"Artifact  {show.one_line(str(folder))}"), soft_wrap=True)
        console.print(Text(f"Report    {show.one_line(str(folder / 'report.html'))}"), soft_wrap=True)
