from __future__ import annotations

import json
import math

import pytest

from compressor.errors import CompressorError, ResourceError, VerificationError
from compressor.report import check_report, write_reports
from tests.report.samples import RECIPE, REPORTS, decoder

FILES = ["README.md", "junit.xml", "report.html", "report.json"]


@pytest.mark.parametrize("name", REPORTS)
def test_all_four_files(tmp_path, name):
    written = write_reports(tmp_path, REPORTS[name](), RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read == written == REPORTS[name]()
    check_report(read)


def test_same_report_same_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_reports(tmp_path / folder, decoder(), RECIPE)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_not_finite_is_null_with_a_reason_everywhere(tmp_path):
    report = decoder()
    report["compressed"]["metrics"]["perplexity"] = math.nan
    written = write_reports(tmp_path, report, RECIPE)
    assert written["verdict"] == "failed"
    assert "NaN" not in (tmp_path / "report.json").read_text(encoding="utf-8")
    for name in ("report.html", "junit.xml", "report.json"):
        assert "is nan, not a finite number" in (tmp_path / name).read_text(encoding="utf-8")


def test_a_bad_report_leaves_the_old_files_alone(tmp_path):
    write_reports(tmp_path, decoder(), RECIPE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(VerificationError):
        write_reports(tmp_path, {**decoder(), "verdict": "?"}, RECIPE)
    with pytest.raises(CompressorError, match="environment.x"):
        write_reports(tmp_path, {**decoder(), "environment": {"x": object()}}, RECIPE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match=r"report\.html: cannot write the report"):
        write_reports(tmp_path / "gone", decoder(), RECIPE)


def test_names_with_lone_surrogates_can_be_written(tmp_path):
    report = decoder()
    report["model"]["id"] = "bad\ud800name"
    write_reports(tmp_path, report, RECIPE)
    assert json.loads((tmp_path / "report.json").read_bytes())["model"]["id"] == "bad\ud800name"
