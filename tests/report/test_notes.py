"""What a reader should know before the figures are believed stands in page, card and terminal."""

from __future__ import annotations

import io

from rich.console import Console

from compressor.report.card import card
from compressor.report.facts import ArtifactFacts
from compressor.report.html import html_report
from compressor.report.terminal import render_report
from tests.report.samples import decoder


def test_notes_are_shown_and_read_as_text() -> None:
    report = {**decoder(), "notes": ["calibration.data and evaluation.data\nare <b>the same</b>"]}
    assert "<p>Note: calibration.data and evaluation.data are &lt;b&gt;the same&lt;/b&gt;</p>" in html_report(report)
    shown = "- calibration.data and evaluation.data are \\<b\\>the same\\</b\\>"
    assert shown in card(report, "version: 1", ArtifactFacts("onnx"))
    console = Console(width=100, file=io.StringIO(), color_system=None)
    render_report(report, console)
    assert isinstance(console.file, io.StringIO)
    assert "Note: calibration.data and evaluation.data are <b>the same</b>\n" in console.file.getvalue()
