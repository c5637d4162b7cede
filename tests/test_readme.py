"""The README tells the truth: its commands run, its files and tables are those of the project."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import compressor
from compressor import demo, errors

# What stands for the reader's own things: the packaged model for one of the hub, packaged stories for text files.
STAND_INS = {"HuggingFaceTB/SmolLM2-135M": "demo"}
# Enough for figures that mean something, and quick.
BRIEF = {
    "run": ["--set", "calibration.samples=8", "--set", "evaluation.samples=8"],
    "bench": ["--rounds", "3"],
    "eval": ["--samples", "8"],
}
TEXTS = {"train.txt": demo.TRAIN_TEXT, "held-out.txt": demo.VALID_TEXT}


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for block in _blocks(text, "bash") for line in block.splitlines() if line.strip()]


def _section(text: str, name: str) -> str:
    return text.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]


def test_it_shows_only_commands_that_are_tested_here(readme: str) -> None:
    commands = _commands(readme)
    assert {words[0] for words in commands} == {"make", "compressor", "pip"}
    assert [words for words in commands if words[0] == "pip"] == [["pip", "install", ".", "-c", "constraints.txt"]]


def test_its_make_targets_exist(readme: str, repository: Path) -> None:
    targets = {words[1] for words in _commands(readme) if words[0] == "make"}
    targets |= set(re.findall(r"`make ([a-z-]+)`", readme))
    assert {"demo", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=repository, check=True, capture_output=True)


@pytest.mark.slow
def test_its_commands_run_in_their_order(readme: str, repository: Path, tmp_path: Path) -> None:
    for name, source in TEXTS.items():
        shutil.copyfile(source, tmp_path / name)
    environment = {**os.environ, "PYTHONPATH": str(repository), "COLUMNS": "100"}
    call = [sys.executable, "-c", "import sys; from compressor.cli import main; sys.exit(main())"]
    commands = [
        [STAND_INS.get(word, word) for word in words[1:]] for words in _commands(readme) if words[0] == "compressor"
    ]
    assert {"run", "plan", "verify", "bench"} <= {words[0] for words in commands}
    for words in commands:
        done = subprocess.run(
            [*call, *words, *BRIEF.get(words[0], [])],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"compressor {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip() or words[:2] == ["recipes", "copy"]
    (artifact,) = (words[words.index("-o") + 1] for words in commands if words[0] == "run")
    _check_the_folder_table(readme, tmp_path / artifact)


def _check_the_folder_table(readme: str, artifact: Path) -> None:
    table = readme.partition("## What the folder holds")[2].partition("\n\nThe folder")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `") or line.startswith("| config")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - {"model.onnx.data", "model.safetensors"}
    assert named
    assert [name for name in sorted(named) if not (artifact / name).is_file()] == []


def test_its_recipe_is_valid(readme: str, tmp_path: Path) -> None:
    from compressor.passes import methods
    from compressor.recipe import parse_recipe

    (text,) = (block for block in _blocks(readme, "yaml") if "passes:" in block)
    options = {name: method.Options for name, method in methods().items()}
    recipe = parse_recipe(text, source="README.md", options=options)
    assert [entry.name for entry in recipe.passes] == ["width"]


def test_the_actions_file_compresses_and_shows_the_card(readme: str, repository: Path) -> None:
    assert "(docs/ci-example/compress.yml)" in readme
    shown = (repository / "docs" / "ci-example" / "compress.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(shown)["jobs"]["compress"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    assert any(run.startswith("compressor run") and "||" not in run for run in runs)
    assert any("pip install torch --index-url https://download.pytorch.org/whl/cpu" in run for run in runs)
    assert any(step.get("uses", "").startswith("actions/cache@") and "huggingface" in step["with"]["path"]
               for step in steps)  # fmt: skip
    assert any("artifact/README.md" in run and "$GITHUB_STEP_SUMMARY" in run for run in runs)


def test_its_exit_codes_are_those_of_the_errors(readme: str) -> None:
    table = readme.partition("## Exit codes")[2].partition("## ")[0]
    stated = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    tree = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, errors.CompressorError)]
    assert stated == {0, *(error.exit_code for error in tree)}


def test_its_python_calls_what_there_is(readme: str) -> None:
    (text,) = _blocks(readme, "python")
    tree = ast.parse(text)
    called = {
        node.func.attr for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name) and node.func.value.id == "compressor"
    }  # fmt: skip
    assert called and called <= set(compressor.__all__)


def test_its_links_lead_somewhere(readme: str, repository: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", readme) if not target.startswith("http")]
    assert len(targets) > 4
    assert [target for target in targets if not (repository / target).exists()] == []


def test_it_holds_sample_output_and_figures(readme: str) -> None:
    assert "PASSED" in _section(readme, "sample")
    assert re.search(r"\d", _section(readme, "bench"))


def test_it_speaks_only_of_the_project(repository: Path) -> None:
    pages = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md"), *(repository / "recipes").rglob("*.yaml")]
    leaks = [
        (p.name, w)
        for p in pages
        for w in re.findall(r"/(?:work|tmp|root|home|opt)/\S*", p.read_text(encoding="utf-8"))
    ]
    assert leaks == []
