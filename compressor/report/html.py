"""`report.html`: the report as one page that needs nothing beside itself - no script, no font, no network.

Whatever comes from a model, a recipe or a machine is escaped on its way into the template, and a content security
policy forbids scripts and requests, so that a hostile model name stays a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.report import _format as show
from compressor.report import _sections as sections
from compressor.report._checks import meaning, plain
from compressor.report._curves import MARGIN, search_curves, sweep_curves, sweep_phase, sweep_rows
from compressor.report._kept import kept_rows
from compressor.report._plots import HEIGHT, percent
from compressor.report._templates import environment
from compressor.report.schema import Report, check_report, quotient


def html_report(report: Mapping[str, Any]) -> str:
    """Return the page for a version 1 report.

    Raises:
        VerificationError: `report` is not a version 1 report.
    """
    facts = check_report(report)
    return _PAGE.get_template("page.html").render(
        report=facts,
        name=show.public_name(facts.model.id),
        meta=" · ".join(part for part in (facts.model.task, show.methods(facts)) if part),
        verdict=_verdict(facts),
        savings=sections.savings(facts),
        chains=sections.chains(facts),
        alone={key: show.ratio(quotient(1.0, getattr(facts.ratios, key))) for key in ("flops", "bytes")},
        figures=sections.figures(facts),
        kept=kept_rows(facts),
        curves=sweep_curves(facts),
        points=sweep_rows(facts),
        phase=sweep_phase(facts),
        searches=search_curves(facts),
        stages=sections.stages(facts),
        cost=sections.cost(facts),
        environment=show.environment(facts),
    )


def _verdict(report: Report) -> str:
    """Return how many checks passed or failed, as a sentence of its own."""
    sentence = show.verdict_text(report).partition(": ")[2]
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _harmless(value: Any) -> Any:
    """Return text as one line without paths of this machine; what is HTML already, and every number, as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return show.without_paths(show.one_line(value))


_PAGE = environment(_harmless, autoescape=True, percent=percent)
_PAGE.globals.update(height=HEIGHT, margin=MARGIN, meaning=lambda name: plain(meaning(name)), quotient=quotient)
