"""The benchmark's tables, pages and judgements, on sample results; nothing is measured here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from compressor.passes import methods
from compressor.recipe import parse_recipe
from tests.bench import __main__ as bench
from tests.bench import features, real
from tests.bench.goals import judge, option
from tests.bench.harness import Context, joined, run_job, without_paths
from tests.bench.memory import flatness
from tests.bench.pages import figures_page, readme_section, recipe_header, replace_section
from tests.bench.quality import Subject
from tests.bench.speed import STACKED, dense_geometry, variants
from tests.bench.synthetic import Geometry, write_llama
from tests.bench.tables import TABLES, table

ENVIRONMENT = {
    "processor": "Sample CPU",
    "cores": 2,
    "features": ["avx2"],
    "threads": 1,
    "load": 0.5,
    "system": "Linux x86_64",
    "versions": {"python": "3.11.7"},
}

SETTING = {"name": "llama-wt2", "samples": 512, "held_out": None, "length": 256, "timed_length": 128}


def _run(line: str, perplexity: float, parameters: float, *, stock: bool = True) -> dict[str, Any]:
    return {
        "model": "llama-wt2",
        "pass": line,
        "verdict": "passed",
        "failed": [],
        "metrics": {"perplexity": perplexity, "top1": 0.9},
        "dense_metrics": {"perplexity": 40.0},
        "perplexity_ratio": perplexity / 40,
        "ratios": {"bytes": parameters + 0.01, "parameters": parameters, "flops": parameters},
        "run_speedup": {"prefill": 1.1, "decode": 1.2},
        "speedup": {"prefill": 1.15, "decode": 1.25},
        "compression": {"wall_seconds": 12.0, "cpu_seconds": 11.0, "peak_bytes": 700_000_000},
        "pipeline_peak_bytes": 800_000_000,
        "stock_config": stock,
        "bytes": {"dense": 10_000_000, "ours": 8_000_000},
    }


def _memory_row(blocks: int, peak: float) -> dict[str, Any]:
    sizes = {"weights_bytes": blocks * 7e6, "interpreter_bytes": 4.5e8, "allowed_bytes": 5e8, "pass_peak_bytes": 4.8e8}
    return {"method": "width", "blocks": blocks, **sizes, "peak_bytes": peak, "pass_cpu_seconds": 9.0}


def _quantized() -> list[dict[str, Any]]:
    """Return one row of ours, one of another quantizer that is worse, one that failed, and an encoder's."""
    ours = {**_run("gptq: {bits: 4}", 40.1, 1.0), "metrics": {"perplexity": 40.1, "kl": 0.001}}
    stacked = {
        **_run("width: {sparsity: 0.3} + gptq: {bits: 4}", 41.0, 0.85),
        "metrics": {"perplexity": 41.0, "kl": 0.03},
    }
    other = {
        "model": "llama-wt2",
        "pass": "another quantizer",
        "peer": True,
        "metrics": {"perplexity": 40.4, "kl": 0.004},
        "dense_metrics": {"perplexity": 40.0},
        "perplexity_ratio": 1.01,
        "ratios": {"bytes": 0.4},
        "cpu_seconds": 3.0,
    }
    broken = {"model": "llama-wt2", "pass": "a broken one", "peer": True, "error": "ValueError: no"}
    encoder = {
        **_run("int8-dynamic: {}", 40.0, 1.0),
        "model": "MiniLM",
        "metrics": {"cosine": 0.997, "cosine_min": 0.991, "spearman": 0.85},
        "dense_metrics": {"spearman": 0.8505},
        "speedup": {"forward": 2.6},
    }
    del encoder["perplexity_ratio"]
    return [ours, stacked, other, broken, encoder]


def _real() -> dict[str, Any]:
    """Return rows of the model of real size: two of ours, one that failed, llm-compressor's."""
    mine = [
        {**_run(line, perplexity, 0.9), "model": real.MODEL, "forwards": 6.5}
        for line, perplexity in (("width: {sparsity: 0.2}", 44.0), (real.INT4, 40.5))
    ]
    spent = {"cpu_seconds": 20.0, "peak_bytes": 2_000_000_000, "forwards": 12.0}
    peer = {"model": real.MODEL, "pass": real.PEER.title, "peer": True, "metrics": {"perplexity": 40.6}, **spent}
    peer |= {"dense_metrics": {"perplexity": 40.0}, "perplexity_ratio": 40.6 / 40}
    broken = {"model": real.MODEL, "pass": "slicegpt: {reduction: 0.2}", "error": "ModelError: no"}
    genai = {"speedup": 0.98, "first_token_ratio": 1.01, "tokens_per_second": {"ours": 30.0, "other": 30.6}}
    return {"rows": [*mine, broken, peer], "settings": [], "forward": {"cpu_seconds": 150.0}, "genai": genai}


@pytest.fixture
def results() -> dict[str, Any]:
    obs = "width: {importance: obs, allocation: global, sparsity: %s}"
    rows = [
        _run(obs % "0.2", 40.2, 0.9),
        _run(obs % "0.5", 44.0, 0.75),
        _run("slicegpt: {rotation: shared, reduction: 0.2}", 40.4, 0.8, stock=False),
        {"model": "llama-wt2", "pass": "cfsp: {sparsity: 0.2}", "error": "ModelError: no"},
    ]
    memory = [_memory_row(4, 4.9e8), _memory_row(40, 5.6e8)]
    latency = {"ours": 8.0, "other": 10.0}
    phase = {"name": "decode", "length": 128, "speedup": 1.25, "quartiles": [1.2, 1.3], "ideal": 1.3}
    made: dict[str, dict[str, Any]] = {
        "quality": {"timed": False, "rows": rows, "settings": [SETTING],
                    "skipped": [{"what": "ViT-tiny", "reason": "it is not here"}]},
        "memory": {"rows": memory, "flatness": flatness(memory)},
        "speed": {
            "rows": [
                {"shape": "FFN -30 %", "parameters_ratio": 0.8,
                 "phases": [{**phase, "share_of_ideal": 1.25 / 1.3, "latency_ms": latency}]},
                {"shape": "broken", "parameters_ratio": 0.5, "error": "ValueError: no"},
                {"shape": STACKED, "parameters_ratio": 0.8, "bytes_ratio": 0.14,
                 "phases": [{**phase, "ideal": None, "share_of_ideal": None, "latency_ms": latency, "speedup": 3.6}],
                 "genai": {"128": {"tokens": 64, "prompt": 128, "speedup": 3.7,
                                   "tokens_per_second": {"ours": 37.0, "other": 10.0}}}},
            ],
            "builder": {precision: {"session": {"phases": [
                {"name": "decode", "length": 128, "speedup": speedup, "speedup_quartiles": [0.9, 1.1],
                 "ours": {"per_second": 9.0}, "other": {"per_second": 9.0}}]}, "genai": {"error": "no runtime"}}
                for precision, speedup in (("fp32", 1.02), ("4 bits", 0.8))},
        },
        "export": {
            "rows": [
                {"model": "M", "exporter": name, "seconds": s, "cpu_seconds": s, "peak_bytes": 9e8, "added_bytes": 2e8,
                 "file_bytes": 2e8, "weights_bytes": 2e8}
                for name, s in (("ours", 5.0), ("torch.onnx, opset 18", 9.0))
            ],
            "encoder": [{"other": "optimum-cli O2", "batch": 1, "length": 16, "latency_ms": latency,
                         "latency_ratio": 0.8, "quartiles": [1.2, 1.3]}],
        },
        "cli": {"rows": [{"command": "compressor --help", "seconds": 0.4, "cpu_seconds": 0.2}]},
        "recipes": {"rows": [{**rows[0], "recipe": "demo/sample", "total_seconds": 30.0}]},
        "quantize": {"rows": _quantized(), "settings": [SETTING]},
        "real": _real(),
        "tokens": {
            "settings": [{"name": "ViT-tiny", "images": "all", "batches": [1, 8]}],
            "rows": [
                {**_run("tome: {r: 8}", 40.0, 0.75), "metrics": {"accuracy": 0.8, "top1": 0.95},
                 "dense_metrics": {"accuracy": 0.81},
                 "phases": [{"batch": n, "speedup": 1.2, "speedup_quartiles": [1.1, 1.3]} for n in (1, 8)]},
                {"model": "ViT-tiny", "pass": "tome: {r: 99}", "error": "ModelError: no"},
            ],
        },
        "features": {
            "settings": {"batches": [1, 8]},
            "rows": [
                {**_run("tome: {r: 8}", 40.0, 0.75), "metrics": {"cosine": 0.98765, "cosine_min": 0.9},
                 "phases": [{"batch": n, "speedup": 1.2, "speedup_quartiles": [1.1, 1.3]} for n in (1, 8)]},
                {"model": "dinov2-small", "pass": "tome: {r: 99}", "error": "ModelError: no"},
            ],
        },
        "llava": {
            "settings": [{"name": "small LLaVA"}],
            "rows": [
                *({"model": "small LLaVA", "pass": line, "accuracy": share, "kinds": {"where": share}, "top1": share,
                   "kl": 1 - share, "greedy": share} for line, share in (("", 1.0), ("fastv: {keep: 0.5}", 0.75))),
                {"model": "small LLaVA", "pass": "fastv: {keep: 0.01}", "error": "nothing is left"},
            ],
        },
    }  # fmt: skip
    return {name: {**made[name], "environment": ENVIRONMENT} for name in TABLES}


def test_every_benchmark_has_a_table_without_gaps(results: dict[str, Any]) -> None:
    page = figures_page(results)
    for name, (title, _) in TABLES.items():
        assert f"## {title}" in page and f"[{name}.json]" in page
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count(" | ") for line in block.splitlines()[:1] + block.splitlines()[2:]}) == 1
    assert "* llama-wt2: calibration on 512 samples of 256 tokens, evaluation on all." in page
    assert "Not measured: ViT-tiny: it is not here." in page
    assert "failed: ModelError: no" in page and "failed: ValueError: no" in page
    assert "| 0.9877 | 0.9000 |" in page and "| 0.750 × | 1.20 × | 1.20 × |" in page
    assert "| 0.750 × | 81.0% → 80.0% | 95.0% | 1.33 × | 1.20 × (90%) | 1.20 × (90%) |" in page


def test_goals_are_judged_by_what_was_measured(results: dict[str, Any]) -> None:
    found = {(j.key, j.goal): j for j in judge(results)}
    assert found["S1", "≤ 1.010"].met is True and found["S1", "≤ 1.010"].ours.startswith("1.0050")
    assert found["S1", "≤ 1.018"].met is None
    assert found["S1", "≤ 1.050"].met is False
    assert found["S2", "≤ 1.020"].met is False, "a config that stock transformers cannot load misses S2"
    assert found["S5", "flat in depth"].met is False
    assert found["S6", "≥ 90%"].what.startswith("prefill")
    assert found["U1", "≤ 0.5 s"].met is True
    assert found["Q3", "≤ 0.15 ×, ≥ 3.5 ×"].met is True
    assert [(j.ours, j.met) for j in judge(results) if j.key == "E1"] == [
        ("1.020 × at 128", True), ("0.800 × at 128", False)
    ]  # fmt: skip
    assert {j.met for j in judge({})} == {None}


def test_the_model_of_real_size_is_judged_beside_others(results: dict[str, Any]) -> None:
    found = {j.key: j for j in judge(results) if j.key.startswith("P")}
    assert [(j.ours, j.met, j.note) for j in found.values()] == [
        ("6.5 ×", True, ""),
        ("0.55 ×, 0.35 ×, 0.9975 ×", True, ""),
        ("0.980 ×, 1.010 ×", False, "within noise"),
    ]
    assert "0.980 × those of its builder's graph" in figures_page(results)


def test_without_the_folder_of_models_the_suite_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(real.VARIABLE, raising=False)
    found = real.run(Context(quick=True, data=None, scratch=tmp_path))
    assert found["rows"] == [] and found["skipped"][0]["reason"] == f"{real.VARIABLE} names no folder of models"


def test_shortfalls_are_said_plainly(results: dict[str, Any]) -> None:
    page = figures_page(results)
    assert "Where we don't win yet:" in page
    assert "* S1: llama-wt2, FFN −50%" in page
    assert "goals that are not met among them: [docs/figures]" in readme_section(results)
    assert "A quick run" not in readme_section(results)
    assert "A quick run" in readme_section({**results, "cli": {**results["cli"], "quick": True}})


def test_a_section_of_the_readme_is_replaced_between_its_marks() -> None:
    text = "# Head\n<!-- bench:begin -->\nold\n<!-- bench:end -->\ntail\n"
    once = replace_section(text, "bench", "new\n")
    assert once == "# Head\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\ntail\n"
    assert replace_section(once, "bench", "new") == once
    for broken in ("no marks", text.replace("<!-- bench:end -->", ""), text + text):
        with pytest.raises(ValueError, match="expected one"):
            replace_section(broken, "bench", "new")


def test_pages_are_written_beside_the_figures(results: dict[str, Any], tmp_path: Path) -> None:
    figures = tmp_path / "docs" / "figures"
    figures.mkdir(parents=True)
    (tmp_path / "README.md").write_text("a\n<!-- bench:begin -->\n<!-- bench:end -->\nb\n", encoding="utf-8")
    for name, result in results.items():
        (figures / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    bench.write_pages(figures, tmp_path)
    assert "| llama-wt2 |" in (figures / "README.md").read_text(encoding="utf-8")
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("a\n") and readme.endswith("\nb\n") and "Sample CPU" in readme


def test_headers_of_recipes_state_what_was_measured(repository: Path) -> None:
    text = (repository / "recipes" / "demo" / "llama-ffn-30.yaml").read_text(encoding="utf-8")
    row = {**_run("width", 40.4, 0.8), "total_seconds": 31.0, "model": "sample"}
    new = recipe_header(text, row, ENVIRONMENT)
    assert new.split("version:", 1)[1] == text.split("version:", 1)[1]
    assert "#   size      0.81 × dense (10.0 → 8.0 MB; parameters 0.80 ×)\n" in new
    assert "#   quality   perplexity 1.0100 × (40.00 → 40.40), sample\n" in new
    assert "#   time      31 s with verification, peak 800 MB\n" in new
    assert recipe_header(new, row, ENVIRONMENT) == new
    with pytest.raises(ValueError, match="no line for size"):
        recipe_header("# Nothing\nversion: 1\n", row, ENVIRONMENT)


def test_a_table_refuses_ragged_rows() -> None:
    assert table(("a", "b"), [("1", "x|y")]) == "| a | b |\n|---|---|\n| 1 | x\\|y |"
    with pytest.raises(ValueError, match="a row of 1 cells"):
        table(("a", "b"), [("1",)])


def test_recipe_lines_are_read() -> None:
    assert option("width: {importance: obs, sparsity: 0.3}", "sparsity") == "0.3"
    assert option("width: {importance: obs}", "sparsity") is None


def test_recipes_of_the_benchmark_are_valid() -> None:
    from compressor.passes import methods
    from compressor.recipe import parse_recipe

    options = {name: method.Options for name, method in methods().items()}
    subject = Subject("m", Path("m"), Path("a.txt"), Path("b.txt"), 8, None, 64, (), 64)
    for line in ("width: {importance: obs, allocation: global, sparsity: 0.2}", "cfsp: {sparsity: 0.5}"):
        recipe = parse_recipe(subject.recipe(line), source="benchmark", options=options)
        assert recipe.calibration is not None and recipe.calibration.samples == 8
    both = "slicegpt: {rotation: shared, reduction: 0.2} + width: {sparsity: 0.2}"
    assert len(parse_recipe(subject.recipe(both), source="benchmark", options=options).passes) == 2


def test_a_job_that_fails_leaves_its_reason_and_no_path(tmp_path: Path) -> None:
    context = Context(True, None, tmp_path, resume=True)
    spec = {"argv": [str(tmp_path / "no-command")], "out": str(tmp_path / "out")}
    row = context.step("export", "broken", "command", spec)
    assert "no-command" in row["error"] and str(tmp_path) not in row["error"]
    assert row["process"]["peak_bytes"] > 1_000_000
    assert without_paths(f"cannot read '{os.sep}a{os.sep}b.onnx', sorry") == "cannot read 'b.onnx', sorry"


def test_finished_steps_are_taken_over(tmp_path: Path) -> None:
    spec = {"argv": [sys.executable, "-c", "print('done')"], "out": str(tmp_path / "out")}
    said: list[str] = []
    first = Context(True, None, tmp_path, say=said.append).step("export", "some", "command", spec)
    assert first["file_bytes"] == 0 and first["peak_bytes"] > 1_000_000
    context = Context(True, None, tmp_path, resume=True, say=said.append)
    assert context.step("export", "some", "command", spec) == first and said[-1] == "export/some: kept"
    other = context.step("export", "some", "command", {**spec, "argv": [sys.executable, "-c", "pass"]})
    assert other != first and said[-1].startswith("export/some: done")


def _quality(rows: list[dict[str, Any]], setting: dict[str, Any], processor: str) -> dict[str, Any]:
    environment = {**ENVIRONMENT, "processor": processor}
    made = {"quick": False, "timed": True, "environment": environment}
    return {**made, "settings": [setting], "rows": rows, "skipped": []}


def test_rows_that_were_left_out_stay_with_where_they_were_measured() -> None:
    old, new = _run("width: {sparsity: 0.2}", 41, 0.9), _run("width: {sparsity: 0.2}", 42, 0.9)
    kept, dropped = _run("width: {sparsity: 0.3}", 43, 0.8), _run("width: {sparsity: 0.9}", 44, 0.7)
    planned = [["llama-wt2", f"width: {{sparsity: {s}}}"] for s in (0.2, 0.3, 0.5)]
    made = {**_quality([new], SETTING, "New CPU"), "planned": planned}
    earlier = _quality([dropped, kept, old], SETTING, "Old CPU")
    found = joined(made, earlier)
    assert found["rows"] == [new, {**kept, "environment": earlier["environment"]}]
    assert [item["what"] for item in found["skipped"]] == ["1 of 3 runs on llama-wt2"]
    assert "planned" not in found and joined(made, None)["rows"] == [new]
    assert joined({**made, "genai": None}, {**earlier, "genai": {"speedup": 1.1}})["genai"] == {"speedup": 1.1}
    assert joined({**found, "rows": [new], "planned": planned}, found)["rows"] == found["rows"]
    page = figures_page({"quality": found})
    assert "llama-wt2: measured earlier: Old CPU" in page and "quality.json). New CPU" in page
    for other in (_quality([kept], {**SETTING, "held_out": 5}, "New CPU"), {**earlier, "quick": True}):
        assert joined(made, other)["rows"] == [new]


def test_memory_of_a_job_is_its_own_not_that_of_its_parent(tmp_path: Path) -> None:
    block = bytearray(600_000_000)
    block[::4096] = b"x" * len(block[::4096])
    spec = {"argv": [sys.executable, "-c", "pass"], "out": str(tmp_path / "out")}
    row = run_job("command", spec, tmp_path / "job.log")
    assert 1_000_000 < row["process"]["peak_bytes"] < len(block) / 2
    assert 1_000_000 < row["peak_bytes"] < len(block) / 2
    grown = {**spec, "argv": [sys.executable, "-c", "a = b'x' * 300_000_000"]}
    row = run_job("command", grown, tmp_path / "grown.log")
    assert row["process"]["peak_bytes"] >= row["peak_bytes"] > 300_000_000


@pytest.mark.parametrize("name", ["dense", *variants(dense_geometry(quick=True))])
def test_synthetic_models_have_the_parameters_they_state(name: str, tmp_path: Path) -> None:
    from compressor.model.folder import open_model

    dense = dense_geometry(quick=True)
    shape: Geometry = {"dense": dense, **variants(dense)}[name]
    model = open_model(write_llama(tmp_path / "model", shape))
    assert model.parameters == shape.parameters
    assert [layer.intermediate_size for layer in model.shapes.layers] == list(shape.widths)
    assert model.load().num_parameters() == shape.parameters


def test_speed_variants_keep_what_their_names_say() -> None:
    dense = dense_geometry(quick=False)
    made = variants(dense)
    assert dense.parameters * 4 > 200e6
    assert sum(made["FFN -30 %, another width per layer"].widths) == sum(made["FFN -30 %"].widths)
    assert len(set(made["FFN -30 %, another width per layer"].widths)) == dense.layers
    assert all(width % 8 == 0 for shape in made.values() for width in shape.widths)
    assert dense.decode_bytes(128) < 4 * dense.parameters


@pytest.mark.parametrize("line", features.PASSES)
def test_recipes_of_features_are_valid(line: str, tmp_path: Path) -> None:
    options = {name: method.Options for name, method in methods().items()}
    text = features.recipe(line, tmp_path, 16, 32)
    assert parse_recipe(text, source="features.yaml", options=options, folder=tmp_path).passes
