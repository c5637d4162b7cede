"""Where results go: docs/figures, the README's section, the headers of shipped recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.goals import Results, judge
from tests.bench.tables import (
    TABLES,
    goals_table,
    quality_text,
    quantize_row,
    speedup_text,
    table,
)

_QUICK = "**A quick run: small samples, no figures to quote.** Run `make bench` for the real ones."
_HEADER = ("size", "quality", "speed", "time")


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results that lie in a folder, by name."""
    found = {}
    for name in TABLES:
        file = folder / f"{name}.json"
        if file.is_file():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def environment_text(environment: Mapping[str, Any]) -> str:
    """Return one line about where figures were measured."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    features = f" ({', '.join(environment['features'])})" if environment["features"] else ""
    load = environment["load"]
    state = "load not recorded" if load is None else f"load average {load:.1f} when it began or went on"
    return (
        f"{environment['processor']}{features}, {environment['cores']} cores, {environment['threads']} thread, "
        f"{state}; "
        f"{environment['system']}; {versions}."
    )


def figures_page(results: Results) -> str:
    """Return docs/figures/README.md."""
    how = "Written by `python -m tests.bench`; how to run and read them: [benchmarks](../benchmarks.md)."
    parts = ["# Figures", how]
    if any(result.get("quick") for result in results.values()):
        parts.append(_QUICK)
    parts += ["## Goals", goals_table(results), _missed_text(results)]
    for name, (title, write) in TABLES.items():
        result = results.get(name)
        if result is None:
            continue
        parts += [f"## {title}", write(result)]
        parts += [f"Not measured: {item['what']}: {item['reason']}." for item in result.get("skipped", ())]
        parts += _elsewhere(result)
        parts.append(f"[{name}.json]({name}.json). {environment_text(result['environment'])}")
    return "\n\n".join(parts) + "\n"


def _elsewhere(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each environment of rows that an earlier run measured, if it is not the one of this run."""
    models: dict[str, list[str]] = {}
    for row in result["rows"]:
        where = environment_text(row.get("environment", result["environment"]))
        if where != environment_text(result["environment"]):
            models.setdefault(where, []).append(row["model"])
    return [f"{', '.join(dict.fromkeys(names))}: measured earlier: {where}" for where, names in models.items()]


def _missed_text(results: Results) -> str:
    judged = [item for item in judge(results) if item.met is not None]
    short = [f"* {item.key}: {item.what}: {item.ours}, goal {item.goal}" for item in judged if not item.met]
    text = f"Of {len(judged)} goals that were measured, {len(judged) - len(short)} are met."
    return "\n".join([f"{text} Where we don't win yet:", "", *short]) if short else text


def readme_section(results: Results) -> str:
    """Return what stands between the README's marks: one row for each kind of compression, and where the rest is."""
    parts = []
    if any(result.get("quick") for result in results.values()):
        parts.append(_QUICK)
    rows = [row for shown in _README for row in _shown(results, *shown)]
    if rows:
        parts.append(table(("model", "passes", "quality", "bytes", "speed-up, ONNX Runtime"), rows))
    machines: dict[str, list[str]] = {}
    for suite, model, passes in _README:
        if suite in results and _shown(results, suite, model, passes):
            where = results[suite]["environment"]
            machines.setdefault(f"{where['processor']}, {where['threads']} thread", []).append(model)
    if machines:
        told = "; ".join(f"{', '.join(dict.fromkeys(models))}: {machine}" for machine, models in machines.items())
        page = "[docs/figures](docs/figures/README.md)"
        parts.append(f"Measured on: {told}. All tables, the goals that are not met among them: {page}.")
    return "\n\n".join(parts)


_README = (
    ("quality", "llama-wt2", "width: {importance: obs, allocation: global, sparsity: 0.3}"),
    ("quality", "llama-wt2", "slicegpt: {rotation: shared, reduction: 0.285}"),
    ("quantize", "llama-wt2", "gptq: {bits: 4}"),
    ("quantize", "llama-wt2", "int8-dynamic: {}"),
    ("quantize", "llama-wt2", "width: {sparsity: 0.3} + gptq: {bits: 4, embedding: 4, head: 4}"),
    ("real", "SmolLM2-135M-Instruct", "width: {sparsity: 0.2}"),
    ("real", "SmolLM2-135M-Instruct", "width: {sparsity: 0.3}"),
    ("real", "SmolLM2-135M-Instruct", "slicegpt: {reduction: 0.2}"),
    ("real", "SmolLM2-135M-Instruct", "gptq: {bits: 4, group_size: 32, symmetric: true}"),
    ("real", "SmolLM2-135M-Instruct", "width: {sparsity: 0.2} + gptq: {bits: 4, group_size: 32, symmetric: true}"),
    ("real", "SmolLM2-135M-Instruct", "gptq: {bits: 4, group_size: 32, symmetric: true, embedding: 4, head: 4}"),
    ("quality", "MiniLM", "width: {importance: obs, allocation: global, sparsity: 0.3}"),
    ("quantize", "MiniLM", "int8-dynamic: {}"),
)
"""Suite, model and passes of the rows that the README shows."""


def _shown(results: Results, suite: str, model: str, passes: str) -> list[tuple[str, ...]]:
    """Return the README's row of a result, none where it was not measured."""
    rows = [row for row in results.get(suite, {}).get("rows", ()) if "error" not in row and row["model"] == model]
    if suite == "quantize":
        written = [quantize_row(row) for row in rows]
        return [(row[0], row[1], row[2], row[4], row[5]) for row in written if row[1] == f"`{passes}`"]
    return [
        (
            model,
            f"`{passes}`",
            quality_text(row) + ("" if row["verdict"] == "passed" else "; misses a default bound: exit code 4"),
            f"{row['ratios']['bytes']:.2f} ×",
            speedup_text(row.get("speedup") or row["run_speedup"]),
        )
        for row in rows
        if row["pass"] == passes
    ]


def replace_section(text: str, name: str, content: str) -> str:
    """Return `text` with `content` between `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
        ValueError: the marks are not there, once each and in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected one {begin} and one {end} after it")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"


def recipe_header(text: str, row: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Return a recipe with the measured lines of its header comment rewritten.

    Raises:
        ValueError: the header has not the four lines.
    """
    values = _header_values(row, environment)
    lines = text.splitlines(keepends=True)
    left = dict(values)
    for number, line in enumerate(lines):
        if not line.startswith("#"):
            break
        found = re.match(rf"#   ({'|'.join(_HEADER)})\s", line)
        if found and found[1] in left:
            lines[number] = f"#   {found[1]:<9} {left.pop(found[1])}\n"
    if left:
        raise ValueError(f"the header comment has no line for {', '.join(left)}")
    return "".join(lines)


def _header_values(row: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    before, after = (row["bytes"][side] / 1e6 for side in ("dense", "ours"))
    return {
        "size": f"{row['ratios']['bytes']:.2f} × dense ({before:.1f} → {after:.1f} MB; parameters "
        f"{row['ratios']['parameters']:.2f} ×)",
        "quality": f"{quality_text(row)}, {row['model']}",
        "speed": f"{speedup_text(row['run_speedup'])} dense, 1 thread, {environment['processor']}",
        "time": f"{row['total_seconds']:.0f} s with verification, peak {row['pipeline_peak_bytes'] / 1e6:.0f} MB",
    }
