"""Terminal views of what `plan`, `inspect`, `bench` and `eval` return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from compressor.report import _format as show
from compressor.report._layers import dimension_label, dimensions, is_number
from compressor.report._tables import NARROW, cell, figure_table, grid


def render_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print what a recipe would do to a model: sizes before and after, pass by pass, and what the run will cost.

    Args:
        plan: `model`, `passes`, `dense`, `planned`, `bytes_exact`, `ratios`, `peak_memory_bytes`, `seconds_estimate`,
            `half`, `calibration`; absent keys are left out.
        console: where to print.
    """
    console.print(_title("Plan", plan.get("model") or {}))
    console.print()
    wide = console.width >= NARROW
    dense, planned, ratios = (plan.get(key) or {} for key in ("dense", "planned", "ratios"))
    table = figure_table("dense", "planned", "ratio")
    for label, key, form in (
        ("parameters", "parameters", show.count),
        ("bytes stored" if wide else "bytes", "bytes", show.size),
        ("FLOPs, theoretical" if wide else "FLOPs", "flops", show.flops),
    ):
        if dense.get(key) is not None or planned.get(key) is not None:
            about = "about " if key == "bytes" and not plan.get("bytes_exact", True) else ""
            table.add_row(label, form(dense.get(key)), about + form(planned.get(key)), show.ratio(ratios.get(key)))
    console.print(table)
    console.print()
    passes: Sequence[Mapping[str, Any]] = plan.get("passes") or []
    if passes:
        table = grid("pass", "family", "parameters", "layers changed", right=("layers changed",))
        for entry in passes:
            before, after = entry.get("parameters_before"), entry.get("parameters_after")
            change = f"{show.count(before)} → {show.count(after)}" if after is not None else show.DASH
            changed = {row.index for d in dimensions(entry.get("layers") or []) for row in d.rows if row.changed}
            table.add_row(cell(show.pass_name(entry)), cell(str(entry.get("family", ""))), change, str(len(changed)))
        console.print(table)
        for entry in passes:
            print_dimensions(show.pass_name(entry), entry.get("layers") or [], console)
        console.print()
    _print_facts(
        [
            ("Peak memory", show.size(plan.get("peak_memory_bytes"))),
            ("Time of passes", show.seconds(plan.get("seconds_estimate"))),
            ("Half of it with", _half(plan.get("half"))),
            ("FLOPs of", _sample(plan.get("length"))),
            ("Calibration", _pairs(plan.get("calibration") or {})),
            ("Export", _pairs(plan.get("export") or {})),
        ],
        console,
    )


def _half(half: Mapping[str, Any] | None) -> str:
    return "" if half is None else f"{half['samples']} calibration samples ({show.seconds(half['seconds'])})"


def render_inspect(info: Mapping[str, Any], console: Console) -> None:
    """Print the structure of a model or an artifact; runs of equal layers share a row.

    Args:
        info: `path`, `kind`, `format`, `family`, `task`, `parameters`, `bytes`, `flops`, `layers`, and the `verdict` of
            an artifact, or `parts` with these for each; absent keys are left out.
        console: where to print.
    """
    _print_structure(info, console)
    for part in (info.get("parts") or {}).values():
        console.print()
        _print_structure(part, console)


def _print_structure(info: Mapping[str, Any], console: Console) -> None:
    console.print(Text(show.one_line(str(info.get("path", ""))), style="bold"), soft_wrap=True)
    _print_facts(
        [
            *((key.capitalize(), show.one_line(str(info.get(key) or show.DASH))) for key in ("kind", "format")),
            *((key.capitalize(), show.one_line(str(info.get(key) or show.DASH))) for key in ("family", "task")),
            ("Parameters", show.count(info.get("parameters"))),
            ("Bytes", show.size(info.get("bytes"))),
            ("FLOPs", _flops(info)),
            ("Hidden", str(info.get("hidden_size") or show.DASH)),
            ("Verdict", show.one_line(str(info.get("verdict") or show.DASH))),
        ],
        console,
    )
    layers: Sequence[Mapping[str, Any]] = info.get("layers") or []
    columns = _figure_keys(layers)
    if not info.get("shortcuts") and "residual" in columns:
        columns.remove("residual")  # the hidden width says it
    if not columns:
        return
    console.print()
    between = " " if console.width >= NARROW else "\n"  # a column that is narrow of itself breaks no word
    heads = [dimension_label(key).replace(" ", between) for key in columns]
    table = grid("layer", *heads, right=heads)
    for first, last, layer in _runs(layers, columns):
        values = [_figure(layer.get(key)) for key in columns]
        table.add_row(str(first) if first == last else f"{first}–{last}", *values)
    console.print(table)


def render_timing(timing: Mapping[str, Any], console: Console) -> None:
    """Print latencies side by side.

    Args:
        timing: `ours` and `other` (milliseconds by phase; `other` may be None), `speedup` by phase, `tokens_per_second`
            by phase, and the conditions `threads`, `batch`, `length`, `rounds`; all but `ours` may be absent.
        console: where to print.
    """
    ours, other = timing["ours"], timing.get("other") or {}
    speedup, rate = timing.get("speedup") or {}, timing.get("tokens_per_second") or {}
    heads = [*(["other"] if other else []), "ours", *(["speed-up"] if other else []), *(["tokens/s"] if rate else [])]
    table = figure_table(*heads)
    for phase in dict.fromkeys([*ours, *other]):
        row = [show.milliseconds(ours.get(phase))]
        if other:
            row = [show.milliseconds(other.get(phase)), *row, show.ratio(speedup.get(phase))]
        if rate:
            row.append(f"{rate[phase]:,.0f}" if rate.get(phase) is not None else show.DASH)
        table.add_row(cell(phase), *row)
    console.print(table)
    conditions = {key: timing[key] for key in ("threads", "batch", "length", "rounds") if timing.get(key)}
    if conditions:
        console.print()
        console.print(Text(f"Medians, {_pairs(conditions)}"))


def render_eval(metrics: Mapping[str, float | None], console: Console) -> None:
    """Print quality metrics by name, each with what it means."""
    table = grid("metric", "value", "", right=("value",))
    known = [name for name in show.METRICS if name in metrics]
    for name in [*known, *(name for name in metrics if name not in show.METRICS)]:
        facts = show.metric(name)
        table.add_row(cell(facts.label), show.metric_value(name, metrics[name]), facts.meaning)
    console.print(table)


def print_dimensions(name: str, layers: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print on one line which dimensions a pass changed, and from what to what; nothing where it changed none."""
    if changed := [dimension.summary for dimension in dimensions(layers)]:
        console.print(cell(f"{name}: {', '.join(changed)}"))


def _figure_keys(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys under which at least one layer has a figure, in the order in which they come."""
    items = (item for layer in layers for item in layer.items())
    return list(dict.fromkeys(key for key, value in items if key != "index" and _figure(value) != show.DASH))


def _figure(value: Any) -> str:
    """Return a layer's figure, or its figures at several places, such as the hidden width before each half."""
    figures = value if isinstance(value, list) else [value]
    if not figures or not all(map(is_number, figures)):
        return show.DASH
    return "/".join(f"{figure:,}" for figure in figures)


def _title(word: str, model: Mapping[str, Any]) -> Text:
    """Return `Plan  org/model · task` for the first line of a view."""
    title = Text.assemble((word, "bold"), "  ", (show.one_line(str(model.get("id") or "")), "bold"))
    if model.get("task"):
        title.append(f" · {show.one_line(str(model['task']))}")
    return title


def _print_facts(facts: Iterable[tuple[str, str]], console: Console) -> None:
    """Print the facts that are known as two aligned columns."""
    table = grid("name", "fact", header=False)
    for name, fact in facts:
        if fact and fact != show.DASH:
            table.add_row(Text(name, style="dim"), cell(fact))
    console.print(table)


def _sample(length: int | None) -> str:
    """Return the sample on which FLOPs were counted: tokens, or an image, which has none; nothing if it is unknown."""
    if length is None:
        return ""
    return f"one sample of {length} tokens" if length else "one image"


def _flops(info: Mapping[str, Any]) -> str:
    sample = _sample(info.get("length")).removeprefix("one sample of ")
    return show.flops(info.get("flops")) + (f" over {sample}" if sample else "")


def _pairs(values: Mapping[str, Any]) -> str:
    """Return `samples 128, length 512`, leaving out what is unknown."""
    return show.one_line(", ".join(f"{key} {value}" for key, value in values.items() if value is not None))


def _runs(layers: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterable[tuple[int, int, Mapping[str, Any]]]:
    """Yield (first index, last index, layer) of each run of layers that have the same figures."""
    start = 0
    for i in range(1, len(layers) + 1):
        same = i < len(layers) and all(layers[i].get(key) == layers[start].get(key) for key in columns)
        if not same:
            yield int(layers[start].get("index", start)), int(layers[i - 1].get("index", i - 1)), layers[start]
            start = i
