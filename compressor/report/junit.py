"""`junit.xml`: one test case for each check, so that a CI system shows a failed verification as failed tests."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from compressor.report import _format as show
from compressor.report.schema import Check, Report, check_report

_SUITE = "compressor.verify"


def junit_report(report: Mapping[str, Any]) -> str:
    """Return the checks of a version 1 report as JUnit XML.

    A failed verdict without a failed check gets a failed case `verdict`, so that it is never green.

    Raises:
        VerificationError: `report` is not a version 1 report.
    """
    facts = check_report(report)
    checks = list(facts.checks)
    if not facts.passed and not facts.failed:
        checks.append(Check(name="verdict", passed=False, reason="the checks did not come to an end"))
    failures = sum(not check.passed for check in checks)
    totals = {"tests": str(len(checks)), "failures": str(failures), "errors": "0"}
    if (seconds := facts.seconds.get("verify")) is not None:
        totals["time"] = f"{seconds:.3f}"
    root = ElementTree.Element("testsuites", {"name": _SUITE, **totals})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _SUITE, **totals, "skipped": str(len(show.unjudged_checks(facts)))}
    )
    _properties(suite, facts)
    for check in checks:
        _case(suite, check)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _properties(suite: ElementTree.Element, report: Report) -> None:
    values = [("model", show.public_name(report.model.id)), ("verdict", report.verdict)]
    ratios = report.ratios
    for name, value in (("bytes", ratios.bytes), ("parameters", ratios.parameters), ("flops", ratios.flops)):
        values += [(f"ratio.{name}", f"{value:.6g}")] if value is not None else []
    values += [(f"speedup.{phase}", f"{value:.6g}") for phase, value in ratios.speedup.items() if value is not None]
    values += [(f"environment.{name}", value) for name, value in show.flat(report.environment)]
    group = ElementTree.SubElement(suite, "properties")
    for name, text in values:
        ElementTree.SubElement(group, "property", {"name": _clean(name), "value": _clean(text)})


def _case(suite: ElementTree.Element, check: Check) -> None:
    """Add one case; the class is the first part of the check's name, so that CI systems group by it."""
    name = _clean(check.name)
    group = f"{_SUITE}.{name.partition('.')[0]}"
    case = ElementTree.SubElement(suite, "testcase", {"classname": group, "name": name})
    figures = f"value {show.quantity(check.value, check.unit)}, required {show.bound_text(check.bound, check.unit)}"
    if not check.passed:
        reason = _clean(show.reason_text(check))
        ElementTree.SubElement(
            case, "failure", {"type": group, "message": reason}
        ).text = f"{reason}\n{_clean(figures)}"
    elif check.reason:
        ElementTree.SubElement(case, "skipped", {"message": _clean(check.reason)})
    elif check.bound is not None:
        ElementTree.SubElement(case, "system-out").text = _clean(figures)


def _clean(text: str) -> str:
    """Return the text as one line without what XML 1.0 cannot hold, and without paths of this machine."""
    return show.without_paths("".join(c for c in show.one_line(text) if c < "\ufffe" or c > "\uffff"))
