"""The Python API: the code of its page runs, its results are typed, and importing it costs next to nothing."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import compressor
from compressor.errors import ModelError, RecipeError, UsageError
from compressor.machine.progress import NullProgress
from compressor.measure.timing import Timing
from compressor.pipeline import Evaluation
from compressor.recipe import Recipe
from compressor.report.schema import Report

FUNCTIONS = ("run", "plan", "verify", "bench", "evaluate", "load")
PLAIN = {"version": 1, "name": "plain", "model": {"id": "demo"}, "passes": []}
FAILED = {
    "version": 1,
    "verdict": "failed",
    "model": {"id": "demo"},
    "checks": [{"name": "bounds.kl", "value": 2.0, "passed": False, "reason": "bounds.kl is 2", "damaged": False}],
    "artifact": "out.rejected",
}


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "api.md").read_text(encoding="utf-8")


def _code(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def ran(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's code leaves behind, and `folder`, where it ran."""
    folder = tmp_path_factory.mktemp("api")
    names: dict[str, Any] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in _code(page):
            exec(compile(block, "docs/api.md", "exec"), names)
    return names


@pytest.mark.slow
def test_the_code_of_the_page_gives_what_the_page_says(ran: dict[str, Any]) -> None:
    report, folder = ran["report"], ran["folder"]
    assert isinstance(report, Report) and report.passed and report.failed == []
    assert report.artifact == folder / "artifact"
    stored = json.loads((folder / "artifact" / "report.json").read_text(encoding="utf-8"))
    assert report.to_json() == {**stored, "artifact": str(report.artifact)}
    assert report.metrics == stored["compressed"]["metrics"] and report.ratios.bytes < 0.85
    assert isinstance(ran["checked"], Report) and ran["checked"].passed
    assert ran["checked"].artifact == Path("artifact")
    assert isinstance(ran["timing"], Timing) and ran["timing"].threads == 2
    assert isinstance(ran["quality"], Evaluation) and set(ran["quality"].metrics) == {"perplexity", "kl"}
    assert ran["planned"]["ratios"]["parameters"] < report.ratios.parameters
    assert not (folder / "mine").exists(), "a recipe that is not valid leaves nothing"


@pytest.mark.slow
def test_a_damaged_artifact_is_a_failed_report(ran: dict[str, Any]) -> None:
    (ran["folder"] / "artifact" / "model.onnx").unlink()
    report = compressor.verify(ran["folder"] / "artifact")
    assert not report.passed and any(check.damaged for check in report.failed)


def test_the_page_names_every_function_with_its_arguments(page: str) -> None:
    for name in FUNCTIONS:
        signature = inspect.signature(getattr(compressor, name))
        (row,) = re.findall(rf"^\| `compressor\.{name}\((.*?)\)`", page, flags=re.MULTILINE)
        assert re.findall(r"\w+", row) == list(signature.parameters), name
        assert signature.return_annotation is not inspect.Signature.empty
    assert set(FUNCTIONS) == set(compressor.__all__)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_code_of_the_page_is_typed(page: str, repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.py"
    file.write_text("\n".join(_code(page)), encoding="utf-8")
    done = subprocess.run(
        # What the package itself gets wrong is told by `make check`.
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file", "pyproject.toml", file],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_it_costs_next_to_nothing(repository: Path) -> None:
    code = "import sys, compressor; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "numpy", "transformers", "onnx", "pydantic", "yaml", "rich"} == set()


def test_a_failed_verification_is_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def run(recipe: Recipe, **given: Any) -> dict[str, Any]:
        asked.update(given, recipe=recipe)
        return FAILED

    monkeypatch.setattr("compressor.pipeline.run", run)
    monkeypatch.chdir(tmp_path)
    report = compressor.run(PLAIN, model=Path("other/model"), overrides=["name=mine"])
    assert (report.passed, report.artifact) == (False, Path("out.rejected"))
    assert [check.reason for check in report.failed] == ["bounds.kl is 2"]
    assert (asked["model"], asked["out"], asked["resume"]) == ("other/model", Path("mine"), False)
    assert isinstance(asked["progress"], NullProgress)


def test_a_recipe_of_any_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor._api import open_recipe

    content = open_recipe(PLAIN, ["verify.size_ratio.max=1"])
    (tmp_path / "plain.yaml").write_text(content.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for form in ("plain.yaml", tmp_path / "plain.yaml"):
        assert open_recipe(form, ["verify.size_ratio.max=1"]).resolved() == content.resolved()
    assert open_recipe(content) is content
    assert content.bounds == {"size_ratio": {"max": 1.0}}
    assert open_recipe("demo/llama-ffn-30").name == "demo-llama-ffn-30"


def test_what_a_recipe_of_python_values_gets_wrong_has_no_lines() -> None:
    from compressor._api import open_recipe

    with pytest.raises(RecipeError) as caught:
        compressor.plan({**PLAIN, "passes": [{"widht": {}}], "colour": 1}, overrides=["verify.kl.mx=1"])
    assert {problem.line for problem in caught.value.problems} == {None}
    assert {problem.where for problem in caught.value.problems} >= {"passes[0].widht", "colour"}
    assert open_recipe(PLAIN).problem(("model", "id"), "is odd").line is None
    with pytest.raises(UsageError, match="recipe: cannot represent an object: PosixPath"):
        compressor.plan({**PLAIN, "model": {"id": Path("demo")}})
    with pytest.raises(UsageError, match="parsed already"):
        compressor.plan(open_recipe(PLAIN), overrides=["name=x"])


def test_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such artifact folder"):
        compressor.verify(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="this is the model to compress"):
        compressor.run(PLAIN, model=tmp_path, out=tmp_path)
    with pytest.raises(UsageError, match="no such file, and no shipped recipe"):
        compressor.run("none-such")
