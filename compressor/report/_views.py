"""Terminal views of what `plan`, `inspect`, `bench` and `eval` return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from compressor.report import _format as show
from compressor.report._tables import NARROW, cell, figure_table, grid

_LAYER_COLUMNS = {
    "intermediate_size": "FFN width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "residual": "residual",
    "parameters": "parameters",
}


def render_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print what a recipe would do to a model: sizes before and after, pass by pass, and what the run will cost.

    Args:
        plan: `model`, `passes`, `dense`, `planned`, `bytes_exact`, `ratios`, `peak_memory_bytes`, `seconds_estimate`,
            `calibration`; absent keys are left out.
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
            layers = str(sum(map(_changed, entry.get("layers") or [])))
            table.add_row(cell(str(entry["name"])), cell(str(entry.get("family", ""))), change, layers)
        console.print(table)
        console.print()
    _print_facts(
        [
            ("Peak memory", show.size(plan.get("peak_memory_bytes"))),
            ("Time", show.seconds(plan.get("seconds_estimate"))),
            ("FLOPs of", f"one sample of {plan['length']} tokens" if plan.get("length") else ""),
            ("Calibration", _pairs(plan.get("calibration") or {})),
            ("Export", _pairs(plan.get("export") or {})),
        ],
        console,
    )


def render_inspect(info: Mapping[str, Any], console: Console) -> None:
    """Print the structure of a model or an artifact; runs of equal layers share a row.

    Args:
        info: `path`, `kind`, `format`, `family`, `task`, `parameters`, `bytes`, `flops`, `layers`, and the `verdict` of
            an artifact; absent keys are left out.
        console: where to print.
    """
    console.print(Text(show.one_line(str(info.get("path", ""))), style="bold"), soft_wrap=True)
    _print_facts(
        [
            *((key.capitalize(), show.one_line(str(info.get(key) or show.DASH))) for key in ("kind", "format")),
            *((key.capitalize(), show.one_line(str(info.get(key) or show.DASH))) for key in ("family", "task")),
            ("Parameters", show.count(info.get("parameters"))),
            ("Bytes", show.size(info.get("bytes"))),
            ("FLOPs", show.flops(info.get("flops")) + (f" over {info['length']} tokens" if info.get("length") else "")),
            ("Hidden", str(info.get("hidden_size") or show.DASH)),
            ("Verdict", show.one_line(str(info.get("verdict") or show.DASH))),
        ],
        console,
    )
    layers: Sequence[Mapping[str, Any]] = info.get("layers") or []
    columns = [key for key in _LAYER_COLUMNS if any(layer.get(key) is not None for layer in layers)]
    if not info.get("shortcuts") and "residual" in columns:
        columns.remove("residual")  # the hidden width says it
    if not columns:
        return
    console.print()
    heads = [_LAYER_COLUMNS[key] for key in columns]
    table = grid("layer", *heads, right=heads)
    for first, last, layer in _runs(layers, columns):
        values = [show.DASH if layer.get(key) is None else f"{layer[key]:,}" for key in columns]
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
    conditions = {key: timing[key] for key in ("threads", "batch", "length", "rounds") if timing.get(key) is not None}
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


def _changed(layer: Mapping[str, Any]) -> bool:
    """Whether any dimension of a layer is different after the pass."""
    stems = [key.removesuffix("_before") for key in layer if key.endswith("_before")]
    return any(layer[f"{stem}_before"] != layer.get(f"{stem}_after") for stem in stems)


def _width(value: int | Sequence[int] | None) -> str:
    """Return a width, or the widths at several places of a layer."""
    if value is None:
        return show.DASH
    return f"{value:,}" if isinstance(value, int) else "/".join(map(str, value))


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
