"""`README.md` of the artifact: a model card for the people who will load it.

It holds no path of the machine that made it: of a local model only the last part of its path is named. So it is with
the recipe, which is quoted as it was run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compressor.report import _format as show
from compressor.report._snippets import usage
from compressor.report._templates import environment
from compressor.report.facts import ArtifactFacts
from compressor.report.schema import Report, check_report

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")
_WHOLE = "---\n{{ card_data }}\n---\n\n{{ body }}"
_HUB_METRICS = {
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
    "f1": "f1",
}
"""Our metrics that model hubs know too, and what they call them."""


class Markdown(str):
    """Text that is Markdown already: a template prints it as it is."""


def card(report: Mapping[str, Any], recipe_text: str, facts: ArtifactFacts) -> str:
    """Return the model card as Markdown.

    Args:
        report: a version 1 report.
        recipe_text: the recipe as it was run.
        facts: what the artifact folder holds.

    Raises:
        VerificationError: `report` is not a version 1 report.
    """
    from huggingface_hub import ModelCard

    checked = check_report(report)
    body = _CARD.get_template("card.md").render(
        report=checked,
        facts=facts,
        name=show.public_name(checked.model.id),
        verdict=show.verdict_text(checked),
        figures=_figures(checked),
        usage=Markdown(usage(checked.model.task, facts)),
        recipe=show.without_paths(recipe_text),
        environment=show.environment(checked),
    )
    return str(ModelCard.from_template(_metadata(checked, facts), template_str=_WHOLE, body=body))


def markdown(value: str) -> Markdown:
    """Return text from anywhere as plain Markdown: one line, nothing in it read as markup or as a table cell."""
    return Markdown(_SPECIAL.sub(r"\\\1", show.without_paths(show.one_line(value))))


def fenced(content: str, language: str) -> Markdown:
    """Return a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{content.rstrip()}\n{fence}\n")


def _metadata(report: Report, facts: ArtifactFacts) -> ModelCardData:
    """Return what model hubs read at the head of a card; what the report does not know (the licence) stays out."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        base_model=report.model.id if show.is_hub_id(report.model.id) else None,
        library_name="onnxruntime" if facts.format == "onnx" else "transformers",
        metrics=[_HUB_METRICS[name] for name in report.compressed.metrics if name in _HUB_METRICS] or None,
        pipeline_tag=show.one_line(report.model.task) or None,
        tags=["compressor", facts.format, *(show.one_line(entry.name) for entry in report.passes)],
    )


def _figures(report: Report) -> list[list[str]]:
    """Return the rows of the table of figures: what, dense, compressed, ratio or change."""
    dense, compressed, ratios = report.dense, report.compressed, report.ratios
    amounts = [
        ("parameters", show.count, dense.parameters, compressed.parameters, ratios.parameters),
        ("bytes on disk (stored)", show.size, dense.bytes, compressed.bytes, ratios.bytes),
        ("FLOPs of a forward pass (theoretical)", show.flops, dense.flops, compressed.flops, ratios.flops),
    ]
    rows = [
        [label, form(before), form(after), show.ratio(ratio)]
        for label, form, before, after, ratio in amounts
        if before is not None or after is not None
    ]
    for phase in show.phases(report):
        speedup = ratios.speedup.get(phase)
        faster = show.DASH if speedup is None else f"{show.ratio(speedup)} as fast"
        faster += _within(show.speedup_interval(report, phase))
        times = [show.milliseconds(side.latency_ms.get(phase)) for side in (dense, compressed)]
        rows.append([f"{phase} (measured)", *times, faster])
    for name in show.metric_names(report):
        old, new = dense.metrics.get(name), compressed.metrics.get(name)
        values = [
            show.metric_value(name, old) + _within(show.metric_interval(dense, name)),
            show.metric_value(name, new) + _within(show.metric_interval(compressed, name)),
            show.metric_change(name, old, new) + _within(show.change_interval(report, name)),
        ]
        rows.append([show.metric(name).label, *values])
    return rows


def _within(interval: str) -> str:
    """Return a confidence interval behind its figure, nothing where it is not known."""
    return f" ({interval})" if interval else ""


def _code(value: str) -> Markdown:
    """Return text as a code span that a table cell can hold."""
    inside = show.one_line(value).replace("`", "'").replace("|", "/")
    return Markdown(f"`{inside}`")


def _printed(value: Any) -> Markdown:
    """Return what a template prints: Markdown as it is, anything else as plain text."""
    return value if isinstance(value, Markdown) else markdown(str(value))


_CARD = environment(_printed, autoescape=False, fenced=fenced, code=_code)
