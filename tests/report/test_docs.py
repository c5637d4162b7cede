from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from compressor.recipe import GATES, parse_bounds
from compressor.report._format import METRICS
from compressor.report.schema import Check, Figures, PassEntry, Ratios, Report

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["README.md", "report.md"])
def test_links_lead_somewhere(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (DOCS / target).exists(), target


def test_every_metric_and_every_key_is_documented():
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    keys = {key for part in (Report, Figures, Ratios, Check) for key in part.model_fields}
    assert not (keys | set(METRICS) | {"quality_after", "quality_dense"}) - words
    assert {"quality_after", "quality_dense"} <= set(PassEntry.model_fields)
    for name, facts in METRICS.items():
        assert re.search(rf"^\| `{name}` \|.*\| {facts.better} \|", text, flags=re.M)


def test_every_gate_is_documented_with_its_default():
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    for name, gate in GATES.items():
        (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*\| (.*)\|$", text, flags=re.M)
        for side, limit in (gate.limits or {}).items():
            assert row.strip() == f"{side} {limit:g}"


@pytest.mark.parametrize("name", ["report.md", "regression-gate.md"])
def test_examples_of_bounds_are_valid(name):
    blocks = re.findall(r"^```yaml\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), flags=re.S | re.M)
    read = [parse_bounds(block, source=name) for block in blocks if "uses:" not in block and "run:" not in block]
    assert len(read) == 1 and read[0]


def test_the_example_parses():
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        ast.parse(code)
