from __future__ import annotations

import pytest

from compressor.report import _format as show
from compressor.report.schema import Bound, Check, check_report
from tests.report.samples import check, decoder


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (show.count, 0, "0"),
        (show.count, 999, "999"),
        (show.count, 1000, "1.00 K"),
        (show.count, 134_515_008, "134.5 M"),
        (show.count, 999_999, "1.00 M"),
        (show.count, 7_240_000_000, "7.24 B"),
        (show.count, None, "—"),
        (show.size, 512, "512 B"),
        (show.size, 538_402_816, "538.4 MB"),
        (show.flops, 2_725_773_312, "2.73 GFLOPs"),
        (show.milliseconds, 0.04213, "0.042 ms"),
        (show.milliseconds, 9.834, "9.83 ms"),
        (show.milliseconds, 412.7, "413 ms"),
        (show.milliseconds, 12345.0, "12.3 s"),
        (show.seconds, 0.42, "0.42 s"),
        (show.seconds, 12.34, "12.3 s"),
        (show.seconds, 125.2, "2 min 05 s"),
        (show.seconds, 3780.0, "1 h 03 min"),
        (show.ratio, 0.2583, "0.26×"),
        (show.ratio, 0.0312, "0.031×"),
        (show.number, 2_000_000.0, "2000000"),
        (show.number, 4.33333, "4.333"),
        (show.saving, 0.72, "−28.0 %"),
        (show.saving, 1.2, "+20.0 %"),
        (show.saving, 1.0, "0.0 %"),
    ],
)
def test_numbers_as_people_read_them(form, value, text):
    assert form(value) == text


@pytest.mark.parametrize(
    ("name", "dense", "compressed", "change"),
    [
        ("perplexity", 10.0, 10.5, "+5.00 %"),
        ("accuracy", 0.754, 0.731, "−2.30 points"),
        ("spearman", 0.8672, 0.8601, "−0.0071"),
        ("kl", 0.0, 0.06, "—"),
        ("perplexity", None, 10.5, "—"),
        ("rouge", 0.5, 0.25, "−0.2500"),
    ],
)
def test_each_metric_states_its_change_in_its_own_way(name, dense, compressed, change):
    assert show.metric_change(name, dense, compressed) == change


def test_metrics_are_ordered_and_unknown_ones_come_last():
    report = decoder()
    report["compressed"]["metrics"] = {"rouge": 0.3, "top1": 0.9, "kl": 0.1, "perplexity": 9.0}
    assert show.metric_names(check_report(report)) == ["perplexity", "kl", "top1", "rouge"]


@pytest.mark.parametrize(
    ("bound", "unit", "text"),
    [
        (Bound(max=0.001), "logit", "≤ 0.001 logit"),
        (Bound(min=1.3), "x", "≥ 1.3×"),
        (Bound(min=1, max=2), "", "≥ 1 and ≤ 2"),
        (Bound(max=23_000_000), "bytes", "≤ 23.0 MB"),
        (Bound(equal="float16"), "", "= float16"),
        (Bound(equal=True), "", "= yes"),
        (Bound(), "", "—"),
        (None, "", "—"),
    ],
)
def test_bounds(bound, unit, text):
    assert show.bound_text(bound, unit) == text


def test_a_near_miss_is_shown_with_enough_digits_to_see_it():
    near = Check(**check("speed", 1.29999999, False, "x", min=1.3))
    assert show.shortfall(near) == "1.29999999×, required ≥ 1.3×"
    assert show.shortfall(Check(**check("speed", 1.2, False, "x", min=1.3))) == "1.2×, required ≥ 1.3×"
    bytes_over = Check(**check("size", 23_000_001, False, "bytes", max=23_000_000))
    assert show.shortfall(bytes_over) == "23000001 bytes, required ≤ 23000000 bytes"


def test_every_failure_has_a_reason():
    assert show.reason_text(Check(**check("a", None, False, max=1))) == "not measured, required ≤ 1"
    assert show.reason_text(Check(**check("a", None, False))) == "not satisfied"
    assert show.reason_text(Check(**check("a", 2, False, reason="line\none", max=1))) == "line one"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("org/model", "org/model"),
        ("/home/me/models/tiny-llama/", "tiny-llama"),
        ("../shared/tiny", "tiny"),
        ("~/models/tiny", "tiny"),
        ("C:\\models\\tiny", "tiny"),
        ("models/local/tiny", "tiny"),
        ("gpt2", "gpt2"),
    ],
)
def test_only_the_last_part_of_a_local_path_is_public(given, shown):
    assert show.public_name(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("cannot read /tmp/x/model.onnx: truncated", "cannot read model.onnx: truncated"),
        ("see https://host/a/b and org/model", "see https://host/a/b and org/model"),
        ("'C:\\a\\b\\c.onnx' is short", "'c.onnx' is short"),
        ("~/models/a/b is gone", "b is gone"),
        ("3 / 4 of 10/20", "3 / 4 of 10/20"),
    ],
)
def test_paths_are_cut_out_of_sentences(given, shown):
    assert show.without_paths(given) == shown


def test_control_characters_cannot_steer_the_terminal():
    assert show.one_line("a\x1b[31m\r\nb\u202ec") == "a [31m b c"


def test_nested_environment_becomes_flat():
    assert show.flat({"cpu": {"name": "x", "flags": ["a", "b"]}, "seed": None, "fast": True, "n": 1}) == [
        ("cpu name", "x"),
        ("cpu flags", "a, b"),
        ("fast", "yes"),
        ("n", "1"),
    ]
