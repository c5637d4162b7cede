from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from compressor.report.html import html_report
from tests.report.samples import REPORTS, check, decoder, encoder, hostile

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, text and problems of nesting."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.problems, self.words = [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style",):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def find(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in attributes.items())]


@pytest.mark.parametrize("name", REPORTS)
def test_page_is_well_formed_and_needs_nothing_else(name):
    source = html_report(REPORTS[name]())
    page = Page(source)
    assert page.problems == [] and page.open == []
    assert source.startswith("<!DOCTYPE html>")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "use", "image"}
    for tag, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "srcset", "action", "style"} & set(attributes), tag
        assert not [key for key in attributes if key.startswith("on")], tag
    assert not re.search(r"https?://|url\(|@import|//", source)
    assert page.find("html", lang="en") and page.find("meta", name="viewport")
    assert "default-src 'none'" in page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


@pytest.mark.parametrize("name", REPORTS)
def test_plots_speak_to_screen_readers(name):
    page = Page(html_report(REPORTS[name]()))
    for attributes in page.find("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.find("th"))


def test_greedy_samples_stand_side_by_side():
    text = Page(html_report(decoder())).text
    assert (
        "Sample 1 first difference: token 2 of 32 Prompt: The harbour was built in dense compressed"
        " 1904 and is still in use. 1904 by the | company."
    ) in text
    assert "Sample 2 equal in all 2 tokens Prompt: = dense compressed Birds = Birds =" in text
    assert "Greedy samples" not in Page(html_report(encoder())).text


def test_the_three_savings_are_separate():
    text = Page(html_report(decoder())).text
    for figure in (
        "Theoretical FLOPs per forward pass −17.8 %",
        "Stored bytes on disk −74.2 %",
        "Measured: prefill median, this machine −22.9 % 1.30× as fast",
        "Measured: decode median, this machine −65.6 % 2.90× as fast",
    ):
        assert figure in text


def test_bars_have_an_axis_and_show_what_the_recipe_allows():
    page = Page(html_report(decoder()))
    assert "compressed: 138.9 MB, allowed: 215.4 MB 0 538.4 MB allowed: 215.4 MB (the line)" in page.text
    assert "compressed: 8.06 ms, allowed: 18.0 ms 0 23.4 ms allowed: 18.0 ms (the line)" in page.text
    assert page.text.count("(the line)") == 2, "no other card has a bound"
    (first, _) = page.find("line", **{"class": "mark", "x1": "40.000%"})
    assert first["x2"] == "40.000%"


def test_figures_have_their_confidence_intervals():
    text = Page(html_report(decoder())).text
    assert "18.32 [17.44 to 19.25] 19.61 [18.66 to 20.61] +7.04 % [+6.51 to +7.59 %]" in text
    assert "0.0603 nats [0.0571 to 0.0637 nats] — In brackets" not in text and "[0.0571 to 0.0637 nats]" in text
    assert "1.30× [1.27 to 1.32×]" in text and "by bootstrap over 64 samples" in text
    assert "In brackets" not in Page(html_report(encoder())).text


def test_checks_say_what_they_ask():
    page = Page(html_report(decoder()))
    titles = {attributes["title"] for attributes in page.find("code")}
    assert "The best answer is the same as in PyTorch, at every position of the recorded inputs." not in titles
    assert any("Bytes of the model files over those of the dense export." in title for title in titles)


def test_what_was_not_measured_is_said():
    text = Page(html_report(REPORTS["bare"]())).text
    assert "Theoretical FLOPs per forward pass not known" in text
    assert "Measured median, this machine not known" in text
    assert "No evaluation data was given" in text
    assert "Layer by layer" not in text and "The run" not in text


def test_verdict_and_reasons():
    passed, failed = Page(html_report(decoder())).text, Page(html_report(REPORTS["failed"]())).text
    assert "Verified 9 of 9 checks passed." in passed
    assert "Not verified: do not ship this artifact 2 of 9 checks failed." in failed
    assert "bounds.speedup_decode : the artifact is slower than the dense export" in failed


def test_only_the_first_reasons_are_in_the_headline():
    report = REPORTS["failed"]()
    report["checks"] = [check(f"c{i}", 2, False, max=1) for i in range(9)]
    assert "and 4 more, listed under Checks" in Page(html_report(report)).text


def test_failed_checks_lead_the_table():
    text = Page(html_report(REPORTS["failed"]())).text
    table = text[text.index("check result value required") :]
    assert table.index("bounds.speedup_decode") < table.index("parity.greedy.agreement")
    assert "Also passed : onnx.checker , session.loads , determinism , tokenizer.matches ." in table


def test_every_layer_has_its_column():
    page = Page(html_report(decoder()))
    assert "layer 17: 1536 → 992, 64.6 % kept" in page.text
    assert len(page.find("rect", **{"class": "kept"})) == 30
    assert "In every one of 30 layers: 32 → 4." in page.text
    assert "FFN channels" in page.text and "bits per weight" in page.text


def test_a_dimension_that_no_code_names_is_plotted():
    report = decoder()
    report["passes"][0].update(
        family="tokens",
        layers=[
            {"index": i, "tokens_before": 197 - 8 * i, "tokens_after": 189 - 8 * i, "lanes_before": 4, "lanes_after": 4}
            for i in range(12)
        ],
    )
    page = Page(html_report(report))
    assert "tokens cfsp On average 153 → 145, 94.8 %." in page.text
    assert "layer 11: 109 → 101, 92.7 % kept" in page.text
    assert "lanes" not in page.text, "it is the same before and after"


def test_dimensions_with_the_same_figures_share_a_plot():
    report = decoder()
    for layer in report["passes"][0]["layers"]:
        for name in ("num_attention_heads", "num_key_value_heads"):
            layer.update({f"{name}_before": 12, f"{name}_after": 12 - layer["index"] % 2})
    page = Page(html_report(report))
    assert "query heads and KV heads" in page.text
    assert len(page.find("rect", **{"class": "kept"})) == 60


def test_bits_by_layer_are_averaged():
    report = decoder()
    quantizer = next(entry for entry in report["passes"] if entry["family"] == "quantize")
    for layer in quantizer["layers"][:15]:
        layer["bits_after"] = 8
    assert "On average 32 → 6, 18.8 %." in Page(html_report(report)).text


def test_loss_is_attributed_to_passes_and_export():
    text = Page(html_report(decoder())).text
    start = text.index("Where perplexity changed")
    assert "cfsp: 18.32 to 19.08" in text[start:]
    assert "rsq: 19.08 to 19.61" in text[start:]
    assert "export: 19.61 to 19.61" in text[start:]


def test_attribution_on_data_of_its_own_does_not_mix_with_the_artifact():
    report = decoder()
    for entry, value in zip(report["passes"], (25.0, 26.0), strict=True):
        entry.update(quality_dense={"perplexity": 24.0}, quality_after={"perplexity": value})
    text = Page(html_report(report)).text
    assert "cfsp: 24.00 to 25.00" in text and "rsq: 25.00 to 26.00" in text
    assert "export:" not in text


def test_no_attribution_when_a_pass_says_nothing():
    report = decoder()
    report["passes"][1]["quality_after"] = {}
    assert "Where perplexity changed" not in Page(html_report(report)).text


def test_slower_is_marked_as_worse():
    assert 'class="big worse">+4.4 %' in html_report(REPORTS["failed"]())
    assert "big worse" not in html_report(decoder()).partition("<body>")[2]


@pytest.mark.parametrize("passed", [True, False])
def test_names_from_outside_stay_text(passed):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=y>{{ 7 * 7 }}{% raw %}{# gone #}"
    evil_report, plain_report = hostile(evil), hostile("zebra")
    for report in (evil_report, plain_report) if passed else ():
        report.update(verdict="passed", checks=report["checks"][2:])
    source, plain_source = html_report(evil_report), html_report(plain_report)
    page, plain = Page(source), Page(plain_source)
    assert page.problems == [] and page.open == []
    assert [(tag, sorted(attributes)) for tag, attributes in page.tags] == [(t, sorted(a)) for t, a in plain.tags]
    assert source.count("{{ 7 * 7 }}{% raw %}{# gone #}") == plain_source.count("zebra") > 30
    assert "<script>alert(1)</script>" in page.text


def test_paths_of_the_machine_are_left_out():
    report = encoder()
    report["environment"]["executable"] = "/home/someone/venv/bin/python"
    source = html_report(report)
    assert "/home" not in source and "all-MiniLM-L6-v2" in source
