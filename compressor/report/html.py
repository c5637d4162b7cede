"""`report.html`: the report as one page that needs nothing beside itself - no script, no font, no network.

Everything that comes from a model, a recipe or a machine passes through `text` before it reaches the page, and a
content security policy forbids scripts and requests, so that a hostile model name stays a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.report import _format as show
from compressor.report._css import CSS
from compressor.report._page import section, text
from compressor.report._sections import checks, environment, passes, quality, run, savings, speed, widths
from compressor.report.schema import Report, check_report

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_TICK = (
    '<svg width="24" height="24" viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" '
    'stroke-width="2.2" stroke-linecap="round" stroke-linejoin="round"><circle cx="12" cy="12" r="10"/>{}</svg>'
)
_PASSED = _TICK.format('<path d="M7.5 12.5l3 3 6-6.5"/>')
_FAILED = _TICK.format('<path d="M8.5 8.5l7 7m0-7l-7 7"/>')
_REASONS_SHOWN = 5


def html_report(report: Mapping[str, Any]) -> str:
    """Return the page for a version 1 report.

    Raises:
        VerificationError: `report` is not a version 1 report.
    """
    facts = check_report(report)
    name = text(show.public_name(facts.model.id))
    verdict = "verified" if facts.passed else "not verified"
    body = "".join(
        [
            section("What was saved", _SAVED, savings(facts)),
            section("Quality", _QUALITY, quality(facts)),
            section("Speed", _SPEED, speed(facts)),
            section("Widths by layer", _WIDTHS, widths(facts)),
            section("Passes", "What each method of the recipe did, in the order of the recipe.", passes(facts)),
            section("Checks", "Failed checks come first, with the reason.", checks(facts)),
            section("The run", "", run(facts)),
            section("Environment", "", environment(facts)),
        ]
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: {verdict}</title>\n<style>{CSS}</style></head>\n"
        f"<body>{_header(facts, name)}<main>{body}</main>{_footer(facts)}</body></html>\n"
    )


def _header(report: Report, name: str) -> str:
    methods = " → ".join(entry.name for entry in report.passes)
    meta = " · ".join(text(part) for part in (report.model.task, methods) if part)
    return (
        f'<header><p class="eyebrow">Compression report</p><h1>{name}</h1>'
        f"{f'<p class=meta>{meta}</p>' if meta else ''}{_verdict(report)}</header>"
    )


def _verdict(report: Report) -> str:
    sentence = show.verdict_text(report).partition(": ")[2]
    summary = show.headline(report)
    line = f"<p>{text(sentence[:1].upper() + sentence[1:])}.</p>"
    if report.passed:
        return (
            f'<div class="verdict ok" role="status">{_PASSED}<div><strong>Verified</strong>{line}'
            f"{f'<p>{text(summary)}</p>' if summary else ''}</div></div>"
        )
    reasons = [f"<li><b>{text(c.name)}</b>: {text(show.reason_text(c))}</li>" for c in report.failed[:_REASONS_SHOWN]]
    if (rest := len(report.failed) - _REASONS_SHOWN) > 0:
        reasons.append(f"<li>and {rest} more, listed under Checks</li>")
    items = f"<ul>{''.join(reasons)}</ul>" if reasons else ""
    return (
        f'<div class="verdict no" role="status">{_FAILED}<div><strong>Not verified: do not ship this artifact</strong>'
        f"{line}{items}</div></div>"
    )


def _footer(report: Report) -> str:
    version = report.environment.get("compressor")
    maker = f"Written by compressor {text(str(version))}." if version else "Written by compressor."
    return f"<footer><p>{maker} The same figures, for programs, are in report.json beside this page.</p></footer>"


_SAVED = (
    "Three separate figures. Fewer operations are a promise, fewer bytes are a fact of the file, and only the seconds "
    "were measured: dense and compressed in turn, in one process, on the machine described below."
)
_QUALITY = "Measured on the exported artifact in its own runtime, against the dense model exported the same way."
_SPEED = (
    "The measured speed-up beside what fewer operations alone, or fewer bytes alone, would give. Compute-bound phases "
    "follow the first, memory-bound ones the second."
)
_WIDTHS = "Pale columns are the dense model, strong columns what was kept."
