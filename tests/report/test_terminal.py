"""Golden output at a fixed width. `COMPRESSOR_UPDATE_GOLDEN=1 pytest tests/report` writes the files anew."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from compressor.report.terminal import render_eval, render_inspect, render_plan, render_report, render_timing
from tests.report.samples import REPORTS, check, decoder

GOLDEN = Path(__file__).parent / "golden"

PLAN = {
    "model": {"id": "HuggingFaceTB/SmolLM2-135M", "task": "text-generation"},
    "passes": [
        {
            "name": "cfsp",
            "family": "structure",
            "parameters_before": 134_515_008,
            "parameters_after": 110_626_752,
            "layers": [
                {"index": i, "intermediate_size_before": 1536, "intermediate_size_after": 1536 - 64 * (i > 0)}
                for i in range(30)
            ],
        }
    ],
    "dense": {"parameters": 134_515_008, "bytes": 538_060_032, "flops": 137_742_188_544},
    "planned": {"parameters": 110_626_752, "bytes": 442_507_008, "flops": 113_280_421_888},
    "ratios": {"parameters": 0.8224, "bytes": 0.8224, "flops": 0.8224},
    "length": 512,
    "peak_memory_bytes": 1_200_000_000,
    "seconds_estimate": 190.0,
    "half": {"samples": 64, "seconds": 95.0},
    "calibration": {"data": "text/wikitext2-train.txt", "samples": 128, "length": 512, "seed": 0},
}

INSPECT = {
    "path": "out/smollm2-edge",
    "kind": "artifact",
    "format": "onnx",
    "family": "llama",
    "task": "text-generation",
    "parameters": 110_626_752,
    "bytes": 138_921_004,
    "flops": 113_280_421_888,
    "length": 512,
    "hidden_size": 576,
    "shortcuts": False,
    "verdict": "passed",
    "layers": [
        {
            "index": i,
            "intermediate_size": 1088 if i < 4 else 1024,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "residual": [576, 576, 576],
            "parameters": 2_000_000 if i < 4 else 1_900_000,
        }
        for i in range(6)
    ],
}

TIMING = {
    "ours": {"prefill": 318.2, "decode": 8.06},
    "other": {"prefill": 412.7, "decode": 23.41},
    "speedup": {"prefill": 1.297, "decode": 2.904},
    "tokens_per_second": {"prefill": 1609.1, "decode": 124.07},
    "threads": 1,
    "batch": 1,
    "length": 512,
    "rounds": 15,
}

VIEWS = {
    "plan": lambda console: render_plan(PLAN, console),
    "inspect": lambda console: render_inspect(INSPECT, console),
    "timing": lambda console: render_timing(TIMING, console),
    "timing-alone": lambda console: render_timing({"ours": {"forward": 7.95}, "other": None}, console),
    "eval": lambda console: render_eval({"top1": 0.8917, "perplexity": 19.61, "rouge": 0.25}, console),
    **{
        f"report-{name}": lambda console, make=make: render_report(make(), console, folder=Path("out/edge"))
        for name, make in REPORTS.items()
    },
}


def draw(view, width):
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    VIEWS[view](console)
    return console.export_text(styles=False)


@pytest.mark.parametrize("width", [100, 50])
@pytest.mark.parametrize("view", VIEWS)
def test_golden(view, width):
    text = "\n".join(line.rstrip() for line in draw(view, width).splitlines()) + "\n"
    file = GOLDEN / f"{view}-{width}.txt"
    if os.environ.get("COMPRESSOR_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_bytes_that_calibration_decides_are_estimates():
    console = Console(width=100, record=True, file=io.StringIO(), color_system=None)
    render_plan({**PLAN, "bytes_exact": False}, console)
    (line,) = [line for line in console.export_text().splitlines() if "bytes stored" in line]
    assert "about 442.5 MB" in line and "about 538" not in line


@pytest.mark.parametrize("width", [100, 72, 60, 40])
@pytest.mark.parametrize("view", VIEWS)
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut_off(view, width):
    text = draw(view, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def test_failed_checks_come_first_with_figures_and_reason():
    text = draw("report-failed", 100)
    assert text.index("FAIL") < text.index("pass ")
    assert "4.2 logit, required ≤ 0.001 logit" in text
    assert "it is dominated" in text
    assert "Not verified: 2 of 9 checks failed" in text


def test_a_dimension_that_no_code_names_is_shown():
    report = decoder()
    report["passes"][0]["layers"] = [
        {"index": i, "tokens_before": 197 - 8 * i, "tokens_after": 189 - 8 * i, "lanes_before": 7, "lanes_after": 2.5}
        for i in range(12)
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    render_report(report, console)
    render_plan({**PLAN, "passes": report["passes"]}, console)
    assert console.export_text().count("cfsp: tokens 109–197 → 101–189, lanes 7 → 2.5\n") == 2


def test_layers_of_a_model_show_whatever_figures_they_have():
    layers = [{"index": i, "residual": [576, 512, 512], "lanes": 4 * i, "gate": None, "tied": True} for i in range(3)]
    console = Console(width=100, record=True, file=io.StringIO())
    render_inspect({**INSPECT, "shortcuts": True, "layers": layers}, console)
    text = console.export_text()
    assert "hidden width" in text and "lanes" in text and "gate" not in text and "tied" not in text
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["0", "576/512/512", "0"],
        ["1", "576/512/512", "4"],
        ["2", "576/512/512", "8"],
    ]


def test_names_from_outside_are_neither_markup_nor_control_codes():
    report = decoder()
    report["model"]["id"] = "[bold red]evil[/] \x1b[2J\x07name"
    report["checks"].append(check("[link=x]y[/link]", "[blink]v\x1b]0;t\x07"))
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=True)
    render_report(report, console)
    text = console.export_text(styles=False)
    assert "[bold red]evil[/]" in text and "[link=x]y[/link]" in text and "[blink]v" in text
    assert "\x1b" not in text and "\x07" not in text


def test_the_paths_stay_on_one_line_for_copying():
    folder = Path("a" * 60) / ("b" * 60)
    console = Console(width=40, record=True, file=io.StringIO())
    render_report(decoder(), console, folder=folder)
    assert f"Artifact  {folder}\n" in console.export_text()


@pytest.mark.parametrize(("length", "said"), [(512, "over 512 tokens"), (0, "over one image"), (None, "GFLOPs")])
def test_inspect_says_what_flops_are_counted_over(length, said):
    console = Console(width=100, record=True, file=io.StringIO())
    render_inspect({**INSPECT, "length": length}, console)
    (line,) = (line for line in console.export_text().splitlines() if line.startswith("FLOPs"))
    assert line.rstrip().endswith(said)
