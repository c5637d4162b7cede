from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from compressor.report.junit import junit_report
from tests.report.samples import REPORTS, check, decoder


def parse(report):
    return ElementTree.fromstring(junit_report(report).encode("utf-8"))


@pytest.mark.parametrize("name", REPORTS)
def test_one_case_for_each_check_and_the_counts_agree(name):
    report = REPORTS[name]()
    root = parse(report)
    cases = root.findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == [entry["name"] for entry in report["checks"]]
    failures = [case for case in cases if case.find("failure") is not None]
    assert len(failures) == sum(not entry["passed"] for entry in report["checks"])
    for element in (root, root.find("testsuite")):
        assert int(element.get("tests")) == len(cases) and int(element.get("failures")) == len(failures)


def test_failures_carry_the_reason_and_the_figures():
    failure = parse(REPORTS["failed"]()).find("testsuite/testcase[@name='bounds.speedup_decode']/failure")
    assert "it is dominated" in failure.get("message")
    assert failure.text.endswith("value 0.94×, required ≥ 1.3×")


def test_groups_ratios_and_environment():
    suite = parse(decoder()).find("testsuite")
    classes = {case.get("classname") for case in suite.findall("testcase")}
    assert {"compressor.verify.parity", "compressor.verify.bounds", "compressor.verify.determinism"} <= classes
    values = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert values["ratio.bytes"] == "0.258" and values["speedup.decode"] == "2.904"
    assert values["environment.processor cores"] == "2" and values["verdict"] == "passed"


def test_a_failed_verdict_is_never_green():
    report = {**decoder(), "verdict": "failed", "checks": [check("onnx.checker", True)]}
    suite = parse(report).find("testsuite")
    assert suite.get("failures") == "1" and suite.find("testcase[@name='verdict']/failure") is not None


def test_what_xml_cannot_hold_is_left_out():
    report = decoder()
    report["verdict"] = "failed"
    report["checks"].append(check('bad\x00\x1b<&>"\ufffe\ud800', None, False, reason="a\x0bb ]]> /tmp/a/b \uffff"))
    case = parse(report).findall("testsuite/testcase")[-1]
    assert case.get("name") == 'bad <&>"'
    assert case.find("failure").get("message") == "a b ]]> b"
