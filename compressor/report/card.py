"""`README.md` of the artifact: a model card for the people who will load it.

It holds no path of the machine that made it: of a local model only the last part of its path is named. The recipe is
quoted as it was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.report import _format as show
from compressor.report._snippets import usage
from compressor.report.facts import ArtifactFacts
from compressor.report.schema import Report, check_report

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")


def card(report: Mapping[str, Any], recipe_text: str, facts: ArtifactFacts) -> str:
    """Return the model card as Markdown.

    Args:
        report: a version 1 report.
        recipe_text: the recipe, word for word.
        facts: what the artifact folder holds.

    Raises:
        VerificationError: `report` is not a version 1 report.
    """
    checked = check_report(report)
    name = show.public_name(checked.model.id)
    parts = [
        _front_matter(checked, facts),
        f"# {markdown(name)}, compressed\n",
        _introduction(checked, facts, name),
        f"## Figures\n\n{_figures(checked)}",
        f"## How to load it\n\n{usage(checked.model.task, facts)}",
        f"## Recipe\n\n{fenced(recipe_text, 'yaml')}",
        f"## Limits\n\n{_limits(checked, facts)}",
        f"## Verdict\n\n{_verdict(checked)}",
        f"## Environment\n\n{_environment(checked)}" if checked.environment else "",
    ]
    return "\n".join(part for part in parts if part)


def markdown(value: str) -> str:
    """Return text from anywhere as plain Markdown: one line, nothing in it read as markup or as a table cell."""
    return _SPECIAL.sub(r"\\\1", show.without_paths(show.one_line(value)))


def fenced(content: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}\n"


def _front_matter(report: Report, facts: ArtifactFacts) -> str:
    """Return the YAML head that model hubs read; JSON strings are YAML strings, so any name is safe."""
    lines = ["---"]
    if show.is_hub_id(report.model.id):
        lines.append(f"base_model: {json.dumps(report.model.id)}")
    lines.append(f"library_name: {'onnxruntime' if facts.format == 'onnx' else 'transformers'}")
    if report.model.task:
        lines.append(f"pipeline_tag: {json.dumps(show.one_line(report.model.task))}")
    tags = ["compressor", facts.format, *(show.one_line(entry.name) for entry in report.passes)]
    lines.append(f"tags: {json.dumps(list(dict.fromkeys(tags)))}")
    return "\n".join([*lines, "---\n"])


def _introduction(report: Report, facts: ArtifactFacts, name: str) -> str:
    methods = " → ".join(markdown(entry.name) for entry in report.passes) or "no pass: a plain export"
    task = f" for {markdown(report.model.task)}" if report.model.task else ""
    state = "It was **verified**" if report.passed else "It was **not verified; do not ship it**"
    summary = show.headline(report)
    lines = [
        f"A smaller {'ONNX' if facts.format == 'onnx' else 'safetensors'} version of {markdown(name)}{task}, made with "
        f"compressor ({methods}). {state}: {markdown(show.verdict_text(report).partition(': ')[2])}."
    ]
    if summary:
        lines.append(f"\n{markdown(summary)}")
    return "\n".join(lines) + "\n"


def _figures(report: Report) -> str:
    dense, compressed, ratios = report.dense, report.compressed, report.ratios
    rows = [
        ("parameters", show.count, dense.parameters, compressed.parameters, ratios.parameters),
        ("bytes on disk (stored)", show.size, dense.bytes, compressed.bytes, ratios.bytes),
        ("FLOPs of a forward pass (theoretical)", show.flops, dense.flops, compressed.flops, ratios.flops),
    ]
    cells = [
        [label, form(before), form(after), show.ratio(ratio)]
        for label, form, before, after, ratio in rows
        if before is not None or after is not None
    ]
    for phase in dict.fromkeys([*dense.latency_ms, *compressed.latency_ms]):
        speedup = ratios.speedup.get(phase)
        faster = show.DASH if speedup is None else f"{show.ratio(speedup)} as fast"
        old, new = dense.latency_ms.get(phase), compressed.latency_ms.get(phase)
        cells.append([f"{markdown(phase)} (measured)", show.milliseconds(old), show.milliseconds(new), faster])
    for name in show.metric_names(report):
        old, new = dense.metrics.get(name), compressed.metrics.get(name)
        change = show.metric_change(name, old, new)
        cells.append(
            [markdown(show.metric(name).label), show.metric_value(name, old), show.metric_value(name, new), change]
        )
    return _table(["", "dense", "compressed", "ratio or change"], cells)


def _limits(report: Report, facts: ArtifactFacts) -> str:
    lines = [
        "Latencies hold for the machine, threads and shapes of the run; measure again on your device "
        "(`compressor bench`).",
        "Quality was measured on the evaluation data of the recipe; other domains may lose more or less."
        if report.compressed.metrics
        else "Quality was not measured: the recipe names no evaluation data.",
        "Biases, gaps and licence of the base model carry over.",
    ]
    if facts.decoder and facts.format == "onnx":
        lines.append(
            "The graph takes left or right padding, and several new tokens after a past, at any batch size."
            if facts.portable
            else "The graph uses the GroupQueryAttention operator: pad on the right, and feed one new token at a time "
            "after a past when the batch is larger than 1. `export: {graph: portable}` has neither limit."
        )
    if facts.format == "safetensors" and facts.shaped:
        lines.append("Widths differ by layer, so stock transformers classes need `trust_remote_code=True`.")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _verdict(report: Report) -> str:
    sentence = show.verdict_text(report)
    text = f"{sentence[0].upper()}{sentence[1:]}.\n"
    if report.failed:
        rows = [[f"`{_code(c.name)}`", markdown(show.reason_text(c))] for c in report.failed]
        text += f"\n{_table(['failed check', 'reason'], rows)}"
    return f"{text}\nAll checks: `report.html` for people, `report.json` and `junit.xml` for programs.\n"


def _environment(report: Report) -> str:
    rows = [[markdown(name), markdown(value)] for name, value in show.flat(report.environment) if value]
    return _table(["", ""], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1) if len(heads) > 2 else ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _code(value: str) -> str:
    """Return text for the inside of a code span within a table."""
    return show.one_line(value).replace("`", "'").replace("|", "/")
