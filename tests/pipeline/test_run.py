"""Whole runs on pico-models: artifact, report, verdict, resume, and what stays untouched when something goes wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import DataError, ModelError, RecipeError, UsageError
from compressor.machine.progress import NullProgress
from compressor.model.folder import open_model
from compressor.passes import methods
from compressor.pipeline import inspect, plan, run
from compressor.pipeline.place import rejected_folder
from compressor.pipeline.work import work_folder
from compressor.recipe import Recipe, load_recipe
from compressor.report.schema import check_report
from compressor.storage.tensors import sha256_of
from tests.pipeline.conftest import Maker

Pico = Callable[..., Path]
WEIGHTS = ("model.onnx", "model.onnx.data", "model.safetensors", "config.json")


def go(recipe: Recipe, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    return run(recipe, model=str(model), out=out, progress=NullProgress(), **options)


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256_of(folder / name) for name in WEIGHTS if (folder / name).is_file()}


@pytest.fixture(scope="module")
def finished(pico: Pico, tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, dict[str, Any]]:
    """An artifact and its report."""
    from tests.pipeline import conftest

    make = conftest.make_recipe.__wrapped__(corpus)  # type: ignore[attr-defined]
    out = tmp_path_factory.mktemp("run") / "artifact"
    return out, go(make(), pico("llama"), out)


def test_artifact_holds_what_the_contract_lists(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    names = {file.name for file in out.iterdir()}
    expected = {"model.onnx", "config.json", "tokenizer.json", "recipe.yaml", "compression.json", "report.json"}
    assert expected | {"report.html", "README.md", "genai_config.json"} <= names
    assert report["verdict"] == "passed", [check for check in report["checks"] if not check["passed"]]
    assert json.loads((out / "report.json").read_text())["verdict"] == "passed"
    assert not work_folder(out).exists()


def test_report_follows_the_contract(finished: tuple[Path, dict[str, Any]], pico: Pico) -> None:
    _, report = finished
    check_report(report)
    source = open_model(pico("llama"))
    assert report["model"]["parameters"] == report["dense"]["parameters"] == source.parameters
    assert report["compressed"]["parameters"] == report["passes"][0]["parameters_after"] < source.parameters
    assert report["compressed"]["flops"] < report["dense"]["flops"]
    assert {"prefill", "decode"} <= report["ratios"]["speedup"].keys()
    assert report["passes"][0]["quality_after"]["perplexity"] > 0
    assert {"load", "calibrate", "passes", "export", "verify", "total"} == report["seconds"].keys()
    assert len(report["greedy"]) == 3 and all(sample["prompt"] and sample["dense"] for sample in report["greedy"])
    assert all(0 < sample["tokens"] <= 32 for sample in report["greedy"])


def test_plan_predicts_the_report_exactly(
    finished: tuple[Path, dict[str, Any]], pico: Pico, make_recipe: Maker
) -> None:
    _, report = finished
    planned = plan(make_recipe(), model=str(pico("llama")))
    for side, key in (("dense", "dense"), ("planned", "compressed")):
        assert planned[side]["parameters"] == report[key]["parameters"]
        assert planned[side]["flops"] == report[key]["flops"]
        assert planned[side]["bytes"] == report[key]["weight_bytes"]


def test_inspect_shows_true_widths(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    shown = inspect(out)
    assert (shown["kind"], shown["format"], shown["verdict"]) == ("artifact", "onnx", "passed")
    widths = [layer["intermediate_size_after"] for layer in report["passes"][0]["layers"]]
    assert [layer["intermediate_size"] for layer in shown["layers"]] == widths
    assert shown["parameters"] == report["compressed"]["parameters"]


def test_the_recipe_as_run_gives_the_same_bytes(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    options = {name: method.Options for name, method in methods().items()}
    again = load_recipe(finished[0] / "recipe.yaml", options=options)
    run(again, out=tmp_path / "elsewhere" / "again", progress=NullProgress())
    assert hashes(tmp_path / "elsewhere" / "again") == hashes(finished[0])


def test_what_is_published_names_no_place_of_this_machine(
    finished: tuple[Path, dict[str, Any]], pico: Pico, make_recipe: Maker
) -> None:
    out, _ = finished
    places = {str(out.parent), str(pico("llama").parent), str(make_recipe().folder), str(Path.cwd()), str(Path.home())}
    for name in ("compression.json", "report.json", "report.html", "README.md", "junit.xml"):
        text = (out / name).read_text()
        assert [place for place in places if place in text] == [], name
    assert json.loads((out / "compression.json").read_text())["model"] == pico("llama").name
    assert (out / "recipe.source.yaml").read_text() == make_recipe().text


def test_passes_stack_and_loss_is_attributed(pico: Pico, make_recipe: Maker, tmp_path: Path) -> None:
    passes = [{"width": {"sparsity": 0.2}}, {"slicegpt": {"reduction": 0.2}}]
    report = go(make_recipe(passes=passes, export={"format": "safetensors"}), pico("mistral"), tmp_path / "out")
    first, second = report["passes"]
    assert first["parameters_after"] == second["parameters_before"]
    assert second["parameters_after"] == report["compressed"]["parameters"]
    assert first["quality_after"]["kl"] < second["quality_after"]["kl"]
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_encoder_and_image_model_go_the_same_way(
    pico: Pico, make_recipe: Maker, corpus: Path, tmp_path: Path, family: str
) -> None:
    data = sentences(tmp_path, pico("bert")) if family == "bert" else pictures(tmp_path)
    recipe = make_recipe(
        calibration={"data": str(data), "samples": 16},
        evaluation={"data": str(data), "samples": 16},
        verify={"top1": {"min": 0.0}} if family == "vit" else {"cosine": {"min": -1.0}},
    )
    report = go(recipe, pico(family), tmp_path / "out")
    assert report["verdict"] == "passed", [check for check in report["checks"] if not check["passed"]]
    assert "forward" in report["ratios"]["speedup"]


def sentences(folder: Path, model: Path) -> Path:
    """Write sentence pairs of words that the tokenizer knows."""
    from transformers import AutoTokenizer

    words = sorted(word for word in AutoTokenizer.from_pretrained(model).get_vocab() if word.isalpha())
    rng = random.Random(0)
    rows = [[" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(2)] for _ in range(24)]
    file = folder / "pairs.csv"
    file.write_text("".join(f"{first},{second},{i % 5}\n" for i, (first, second) in enumerate(rows)))
    return file


def pictures(folder: Path) -> Path:
    from tests.core.test_calibration import images

    return images(folder / "images", 16)


def test_missed_bound_fails_and_never_replaces_a_passed_artifact(
    finished: tuple[Path, dict[str, Any]], pico: Pico, make_recipe: Maker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    kept = hashes(out)
    impossible = make_recipe(verify={"size_ratio": {"max": 0.01}, "top1": {"min": 0.01}})
    report = go(impossible, pico("llama"), out)
    assert report["verdict"] == "failed"
    failed = [check for check in report["checks"] if not check["passed"]]
    assert any("size_ratio" in check["name"] and check["reason"] for check in failed)
    assert report["artifact"] == str(rejected_folder(out))
    assert json.loads((rejected_folder(out) / "report.json").read_text())["verdict"] == "failed"
    assert hashes(out) == kept and json.loads((out / "report.json").read_text())["verdict"] == "passed"


def test_a_failed_artifact_is_replaced(
    finished: tuple[Path, dict[str, Any]], pico: Pico, make_recipe: Maker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "report.json").write_text(json.dumps(finished[1] | {"verdict": "failed"}))
    assert go(make_recipe(), pico("llama"), out)["artifact"] == str(out)
    assert json.loads((out / "report.json").read_text())["verdict"] == "passed"


def test_foreign_folder_is_not_overwritten(pico: Pico, make_recipe: Maker, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an artifact"):
        go(make_recipe(), pico("llama"), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_errors_come_before_work_and_leave_nothing(pico: Pico, make_recipe: Maker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"calibration.data: nowhere.txt"):
        go(make_recipe(calibration={"data": "nowhere.txt"}), pico("llama"), out)
    with pytest.raises(ModelError, match="no such folder"):
        go(make_recipe(), tmp_path / "nowhere", out)
    with pytest.raises(UsageError, match="no model"):
        run(make_recipe(), out=out, progress=NullProgress())
    with pytest.raises(RecipeError, match=r"passes\[0\].width: needs calibration data"):
        go(make_recipe(calibration=None), pico("llama"), out)
    with pytest.raises(DataError, match="too little"):
        go(make_recipe(calibration={"data": "train.txt", "samples": 10**6}), pico("llama"), out)
    with pytest.raises(DataError, match=r"calibration.length: 5000 tokens; the model has 256 positions"):
        go(make_recipe(calibration={"data": "train.txt", "length": 5000}), pico("llama"), out)
    assert list(tmp_path.iterdir()) == []


def test_a_pass_on_other_calibration_data_is_not_resumed(
    pico: Pico, make_recipe: Maker, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        raise DataError("stopped before the export")

    monkeypatch.setattr(sys.modules["compressor.pipeline.run"], "_export_dense", stop)

    def weights(name: str, data: list[str], *, resume: bool) -> dict[str, str]:
        sections = [{"data": text, "samples": 8, "length": 32} for text in data]
        recipe = make_recipe(calibration=sections[0], evaluation=sections[1])
        with pytest.raises(DataError, match="stopped") as caught:
            go(recipe, pico("llama"), tmp_path / name, resume=resume)
        assert "--resume" in str(caught.value.hint)
        folder = work_folder(tmp_path / name) / "pass-0"
        return {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}

    data = ["train.txt", "valid.txt"]
    wanted = weights("fresh", data[::-1], resume=False)
    assert weights("out", data, resume=False) != wanted
    assert weights("out", data[::-1], resume=True) == wanted


COMMAND = """
import sys
from pathlib import Path
from compressor.passes import methods
from compressor.pipeline import run
from compressor.machine.progress import NullProgress
from compressor.recipe import load_recipe
recipe = load_recipe(Path(sys.argv[1]), options={k: v.Options for k, v in methods().items()})
run(recipe, model=sys.argv[2], out=Path(sys.argv[3]), progress=NullProgress(), resume=sys.argv[4] == "resume")
"""


def start(recipe: Recipe, model: Path, out: Path, mode: str, corpus: Path) -> subprocess.Popen[bytes]:
    file = out.parent / "recipe.yaml"
    text = recipe.text
    for name in ("train.txt", "valid.txt"):
        text = text.replace(name, str(corpus / name))
    file.write_text(text)
    command = [sys.executable, "-c", COMMAND, str(file), str(model), str(out), mode]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(out.parent / "home")}
    return subprocess.Popen(command, start_new_session=True, env=environment)


@pytest.fixture(scope="module")
def whole(pico: Pico, tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The artifact of a run in a process of its own that nobody disturbed."""
    from tests.pipeline import conftest

    out = tmp_path_factory.mktemp("whole") / "artifact"
    recipe = conftest.make_recipe.__wrapped__(corpus)()  # type: ignore[attr-defined]
    assert start(recipe, pico("llama", num_hidden_layers=6), out, "fresh", corpus).wait() == 0
    assert not (out.parent / "home").exists(), "a run writes nothing to the home folder"
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        ("pass-0/block-0001.safetensors", "dense/model.onnx"),
        pytest.param(("pass-0/findings.safetensors",), marks=pytest.mark.exhaustive),
        pytest.param(("pass-0/block-0004.safetensors",), marks=pytest.mark.exhaustive),
        pytest.param(("dense/model.onnx",), marks=pytest.mark.exhaustive),
    ],
)
def test_killed_run_resumes_to_the_same_bytes(
    whole: Path, pico: Pico, make_recipe: Maker, corpus: Path, tmp_path: Path, moments: tuple[str, ...]
) -> None:
    model, recipe = pico("llama", num_hidden_layers=6), make_recipe()
    out, mode = tmp_path / "killed" / "artifact", "fresh"
    out.parent.mkdir()
    for name in moments:
        process = start(recipe, model, out, mode, corpus)
        waited_for = work_folder(out) / name
        deadline = time.monotonic() + 120
        while not waited_for.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert waited_for.exists() and not out.exists()
        mode = "resume"

    assert start(recipe, model, out, mode, corpus).wait() == 0
    assert hashes(out) == hashes(whole)
    assert not work_folder(out).exists()
