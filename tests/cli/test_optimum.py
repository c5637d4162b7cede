"""`optimum-cli compress` is `compressor run`, and nobody pays for it who does not ask."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import RecipeError
from compressor.recipe import parse_recipe

WATCHED = """
import sys
from optimum.commands.optimum_cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print("LOADED", code, *sorted({"torch", "compressor", "typer"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def optimum(repository: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `optimum("compress", ...)`: run optimum-cli with the subcommand where an installation has it."""
    tree = ast.parse((repository / "hatch_build.py").read_text(encoding="utf-8"))
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "SUBCOMMAND"]
    ((source, target),) = ast.literal_eval(tables[0]).items()
    if not any((Path(folder) / target).is_file() for folder in sys.path):  # optimum would find, and add, it twice
        (tmp_path / "site" / target).parent.mkdir(parents=True)
        shutil.copyfile(repository / source, tmp_path / "site" / target)
    path = os.pathsep.join([str(repository), str(tmp_path / "site")])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80", "NO_COLOR": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WATCHED, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    return call


def test_it_is_listed_and_costs_nothing(optimum: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = optimum("--help")
    assert "compress " in done.stdout
    assert done.stderr.splitlines()[-1] == "LOADED 0"


@pytest.mark.parametrize("arguments", [("--help",), ("-q", "--set", "a=b"), ("-m", "demo", "nowhere.yaml", "--json")])
def test_options_and_exit_codes_are_those_of_run(
    optimum: Callable[..., subprocess.CompletedProcess[str]],
    process: Callable[..., subprocess.CompletedProcess[str]],
    arguments: tuple[str, ...],
) -> None:
    ours, theirs = process("run", *arguments), optimum("compress", *arguments)
    *errors, loaded = theirs.stderr.splitlines()
    assert loaded.split()[:2] == ["LOADED", str(ours.returncode)]
    assert (theirs.stdout, errors) == (ours.stdout, ours.stderr.splitlines())


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ("text-classification", "text-classification"),
        ("causal-lm", "text-generation"),
        ("text-generation-with-past", "text-generation"),
        ("sentence-similarity", "feature-extraction"),
        ("sequence-classification", "text-classification"),
    ],
)
def test_tasks_may_have_the_names_that_optimum_knows(given: str, task: str) -> None:
    text = f"version: 1\nname: x\nmodel: {{task: {given}}}\npasses: []\n"
    assert parse_recipe(text, source="r.yaml", options={}).model.task == task


@pytest.mark.parametrize("given", ["translation", "text-genration", "", "[auto]"])
def test_other_tasks_are_refused_with_those_that_are_allowed(given: str) -> None:
    with pytest.raises(RecipeError, match="allowed: auto, text-generation, feature-extraction"):
        parse_recipe(f"version: 1\nname: x\nmodel: {{task: {given!r}}}\npasses: []\n", source="r.yaml", options={})
