"""The curve of a sweep: which values are worth a choice, and where they lie."""

from __future__ import annotations

from typing import Any

from compressor.report._curves import on_front, search_curves, sweep_curves, sweep_rows
from compressor.report.html import html_report
from compressor.report.schema import check_report
from tests.report.samples import encoder
from tests.report.test_html import Page


def report(*, timed: bool = True) -> dict[str, Any]:
    """Return a report whose option has three more values, one of them beaten."""
    made = encoder()
    dense = {**made["dense"], "metrics": {"accuracy": 0.9}, "latency_ms": {"forward": 10.0}}
    rows = [(0.7, 6.0, 0.8, True), (0.9, 9.0, 0.9, False), (0.8, 7.0, 0.75, False), (0.5, 4.0, 0.6, False)]
    points = [
        {
            "value": value,
            "chosen": chosen,
            "passed": value != 0.5,
            "flops": ms / 10,
            "latency_ms": {"forward": ms} if timed else {},
            "speedup": {"forward": 10 / ms},
            "metrics": {"accuracy": accuracy, "top1": accuracy + 0.05},
        }
        for value, ms, accuracy, chosen in rows
    ]
    compressed = {**made["compressed"], "metrics": points[0]["metrics"]}
    return {**made, "dense": dense, "compressed": compressed, "sweep": {"option": "evit.keep", "points": points}}


def test_a_point_is_on_the_front_unless_another_beats_it() -> None:
    assert on_front([1, 2, 3, 3, 1], [5, 4, 4, 2, 5]) == [True, True, False, True, True]


def test_points_lie_where_their_figures_say() -> None:
    accuracy, agreement = sweep_curves(check_report(report()))
    assert (accuracy.metric, accuracy.cost, agreement.metric) == ("accuracy", "forward, batch 1", "top-1 agreement")
    assert accuracy.ends == ("90.00 %", "60.00 %", "4.00 ms", "10.0 ms")
    kinds = {dot.label: dot.kind for dot in accuracy.dots}
    assert kinds == {"dense": "dense", "0.7": "front", "0.9": "front", "0.8": "behind", "0.5": "front"}
    assert [dot.label for dot in accuracy.dots if dot.chosen] == ["0.7"]
    place = {dot.label: (dot.x, dot.y) for dot in accuracy.dots}
    assert place["0.5"] == (0.06, 150.0) and place["0.9"][1] == place["dense"][1] == 0.0
    assert [line[:2] for line in accuracy.front] == [place["0.5"], place["0.7"]], "dense is beaten by 0.9"
    assert agreement.dots[0].title.startswith("dense: 100.00 %"), "a comparison with itself"


def test_without_times_operations_are_the_cost() -> None:
    curve = sweep_curves(check_report(report(timed=False)))[0]
    assert (curve.cost, curve.ends[2:]) == ("FLOPs over dense", ("0.40×", "1.00×"))


def test_the_page_lists_the_points_dearest_first() -> None:
    rows = sweep_rows(check_report(report()))
    assert [(row.point.value, row.front) for row in rows] == [(0.9, True), (0.8, False), (0.7, True), (0.5, True)]
    page = Page(html_report(report()))
    assert page.problems == [] and page.open == []
    assert "0.8 beaten by another" in page.text and "0.7 the artifact" in page.text and "0.5 not verified" in page.text
    assert "Other values" not in Page(html_report(encoder())).text


def test_what_a_search_tried_is_drawn_and_what_it_took_is_marked() -> None:
    made = encoder()
    tried = [("equal steps", 0.7, 0.3, False), ("", 0.9, 0.1, False), ("", 0.8, 0.4, False), ("", 0.69, 0.2, True)]
    trials = [{"name": n, "flops": f, "divergence": d, "chosen": c} for n, f, d, c in tried]
    made["passes"] = [{**made["passes"][0], "trials": trials}]
    ((name, curve),) = search_curves(check_report(made))
    assert name == made["passes"][0]["name"] and curve.ends == ("0.400", "0.100", "0.69×", "0.90×")
    assert [dot.kind for dot in curve.dots] == ["behind", "front", "behind", "front"]
    assert [dot.label for dot in curve.dots] == ["equal steps", "", "", "taken"] and curve.dots[3].chosen
    page = Page(html_report(made))
    assert page.problems == [] and page.open == []
    assert "What was tried" in page.text and "What was tried" not in Page(html_report(encoder())).text
