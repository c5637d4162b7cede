"""A check that was not judged is shown as such, with its reason, in every form of the report."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from compressor.report.card import card
from compressor.report.facts import ArtifactFacts
from compressor.report.html import html_report
from compressor.report.junit import junit_report
from compressor.report.terminal import render_report
from tests.report.samples import RECIPE, check, decoder

REASON = "not judged: the artifact is for arm64"


def drawn(report: dict[str, Any]) -> str:
    console = Console(width=100, record=True, file=io.StringIO(), color_system=None)
    render_report(report, console)
    return console.export_text()


@pytest.mark.parametrize(
    "view", [drawn, html_report, lambda report: card(report, RECIPE, ArtifactFacts("onnx", decoder=True))]
)
def test_the_reason_is_told(view: Callable[[dict[str, Any]], str]) -> None:
    report = decoder()
    assert "not judged" not in view(report)
    report["checks"].append(check("gain.dominated", 0.9, reason=REASON))
    assert "gain.dominated" in view(report) and REASON in view(report)


def test_it_is_skipped_for_ci_systems() -> None:
    report = decoder()
    report["checks"].append(check("gain.dominated", 0.9, reason=REASON))
    suite = ElementTree.fromstring(junit_report(report).encode()).find("testsuite")
    assert suite is not None and suite.get("skipped") == "1"
    skipped = suite.find("testcase[@name='gain.dominated']/skipped")
    assert skipped is not None and skipped.get("message") == REASON
