from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import CompressorError, VerificationError
from compressor.report import build_ratios, build_report, check_report, clean_report
from tests.report.samples import REPORTS, check, decoder


@pytest.mark.parametrize("name", REPORTS)
def test_samples_are_valid_and_survive_json(name):
    report = json.loads(json.dumps(REPORTS[name](), allow_nan=False))
    facts = check_report(report)
    assert facts.model.id == report["model"]["id"]
    assert facts.passed == (report["verdict"] == "passed")
    assert clean_report(report) == report


def test_unknown_keys_are_kept():
    facts = check_report({**decoder(), "colour": "red"})
    assert facts.model_extra == {"colour": "red"}


def test_all_problems_are_named_at_once():
    report = decoder()
    report["verdict"] = "maybe"
    report["checks"][0]["passed"] = "perhaps"
    report["dense"]["bytes"] = "many"
    report["compressed"]["metrics"]["kl"] = math.nan
    del report["model"]["id"]
    with pytest.raises(VerificationError) as caught:
        check_report(report, source="a.json")
    text = str(caught.value)
    assert text.startswith("a.json: 5 problems\n")
    for place in ("verdict: ", "checks[0].passed: ", "dense.bytes: ", "compressed.metrics.kl: ", "model.id: "):
        assert f"\n  {place}" in text


@pytest.mark.parametrize("version", [None, 2, "1", True])
def test_other_versions_are_refused_with_the_next_step(version):
    with pytest.raises(VerificationError, match="version: expected 1, got") as caught:
        check_report({**decoder(), "version": version})
    assert caught.value.hint


@pytest.mark.parametrize("data", [[], "report", None])
def test_only_objects_are_reports(data):
    with pytest.raises(VerificationError, match="expected a JSON object"):
        check_report(data)


def test_a_passed_verdict_must_follow_from_the_checks():
    with pytest.raises(VerificationError, match="no checks"):
        check_report({**decoder(), "checks": []})
    report = decoder()
    report["checks"].append(check("bounds.size", 2, False, max=1))
    with pytest.raises(VerificationError, match=r"these checks failed: bounds\.size"):
        check_report(report)


def test_null_stands_for_an_absent_part():
    report = decoder()
    report["passes"][0].update(quality_after=None, layers=None, seconds=None)
    report["checks"][0].update(reason=None, unit=None)
    facts = check_report(report)
    assert facts.passes[0].quality_after == {} and facts.passes[0].layers == []
    assert facts.checks[0].reason == "" and facts.checks[0].unit == ""


def test_figures_that_are_not_finite_become_null_and_fail_the_report():
    report = decoder()
    report["compressed"]["metrics"]["perplexity"] = math.inf
    report["checks"][2]["value"] = np.float32("nan")
    clean = clean_report(report)
    json.dumps(clean, allow_nan=False)
    assert clean["verdict"] == "failed"
    assert clean["compressed"]["metrics"]["perplexity"] is None
    assert clean["checks"][2]["passed"] is False
    assert clean["checks"][2]["reason"] == "checks[2].value is nan, not a finite number"
    assert [c.name for c in check_report(clean).failed] == [
        "parity.logits.max_abs",
        "finite.compressed.metrics.perplexity",
    ]
    assert report["verdict"] == "passed", "the report that was given is not changed"


def test_a_reason_that_is_given_is_kept():
    report = decoder()
    report["checks"][2].update(value=math.nan, passed=False, reason="the weights hold NaN")
    assert clean_report(report)["checks"][2]["reason"] == "the weights hold NaN"


def test_numpy_values_paths_and_tuples_become_json():
    clean = clean_report(
        {"a": np.float32(0.5), "b": np.int64(3), "c": np.True_, "d": Path("x/y"), "e": (1, np.array(2))}
    )
    assert clean == {"a": 0.5, "b": 3, "c": True, "d": "x/y", "e": [1, 2]}
    assert type(clean["b"]) is int and clean["c"] is True


def test_values_without_a_json_form_are_named():
    with pytest.raises(CompressorError, match=r"report: a\[0\]\.b: a set has no form in JSON"):
        clean_report({"a": [{"b": {1}}]})
    with pytest.raises(CompressorError, match="ndarray"):
        clean_report({"a": np.zeros(2)})


def test_ratios_follow_from_the_figures():
    dense = {"parameters": 100, "bytes": 400, "flops": None, "latency_ms": {"decode": 8.0, "prefill": 0.0}}
    compressed = {"parameters": 80, "bytes": 100, "flops": 5, "latency_ms": {"decode": 4.0, "prefill": 1.0}}
    ratios = build_ratios(dense, compressed)
    assert ratios == {"parameters": 0.8, "bytes": 0.25, "flops": None, "speedup": {"decode": 2.0, "prefill": 0.0}}
    assert build_ratios(dense, compressed, {"decode": 1.9})["speedup"] == {"decode": 1.9}
    assert build_ratios({}, compressed)["bytes"] is None


def test_a_built_report_draws_its_verdict_from_the_checks():
    parts = {k: decoder()[k] for k in ("model", "dense", "compressed", "checks", "passes", "seconds", "environment")}
    assert build_report(**parts)["verdict"] == "passed"
    assert build_report(**{**parts, "checks": []})["verdict"] == "failed"
    failing = [*parts["checks"], check("x", 1, False)]
    assert build_report(**{**parts, "checks": failing})["verdict"] == "failed"
    with pytest.raises(VerificationError, match=r"model\.id"):
        build_report(**{**parts, "model": {}})
