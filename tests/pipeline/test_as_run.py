"""The recipe that an artifact keeps: what was run, with paths that lead to the same files from the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.passes import methods
from compressor.pipeline.as_run import public_text, public_values, recipe_as_run
from compressor.pipeline.prepare import prepare
from compressor.recipe import load_recipe, parse_recipe

TEXT = """\
# A comment that stays where nothing differs.
version: 1
name: mine
model: {id: model}
calibration: {data: text/train.txt, samples: 8, length: 32}
evaluation: {data: valid.txt, length: 32}
passes:
  - width: {sparsity: 0.3}
verify: {top1: {min: 0.01}}
"""
OPTIONS = {name: method.Options for name, method in methods().items()}


@pytest.fixture
def project(pico: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `recipes/r.yaml`; beside it model and calibration data, evaluation data one folder up."""
    folder = tmp_path / "project"
    (folder / "recipes" / "text").mkdir(parents=True)
    (folder / "recipes" / "r.yaml").write_text(TEXT)
    (folder / "recipes" / "model").symlink_to(pico("llama"))
    (folder / "recipes" / "text" / "train.txt").write_text("x")
    (folder / "valid.txt").write_text("y")
    monkeypatch.chdir(folder)
    return folder


def as_run(path: str, *overrides: str, model: str | None = None) -> tuple[str, str]:
    """Return the recipe as run, and as it is published."""
    prepared = prepare(load_recipe(Path(path), options=OPTIONS, overrides=overrides), model)
    assert str(Path.cwd()) not in str(public_values(prepared))
    return recipe_as_run(prepared), public_text(prepared)


def paths(text: str) -> list[str | None]:
    recipe = parse_recipe(text, source="r.yaml", options=OPTIONS)
    assert recipe.calibration is not None and recipe.evaluation is not None
    return [recipe.model.id, recipe.calibration.data, recipe.evaluation.data]


def test_paths_are_as_seen_from_the_working_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = ["recipes/model", "recipes/text/train.txt", "valid.txt"]
    assert [paths(text) for text in as_run("recipes/r.yaml")] == [beside, beside]
    assert [paths(text) for text in as_run(str(project / "recipes" / "r.yaml"))] == [beside, beside]

    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "valid.txt").write_text("y")
    monkeypatch.chdir(project / "elsewhere")
    above = ["../recipes/model", "../recipes/text/train.txt", "valid.txt"]
    assert [paths(text) for text in as_run("../recipes/r.yaml")] == [above, above]
    text, published = as_run(str(project / "recipes" / "r.yaml"))
    assert paths(text) == [f"{project}/recipes/model", f"{project}/recipes/text/train.txt", "valid.txt"]
    assert paths(published) == ["model", "train.txt", "valid.txt"]


def test_a_recipe_that_says_it_all_stays_word_for_word(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "recipes")
    (project / "recipes" / "valid.txt").write_text("y")
    assert as_run("r.yaml") == (TEXT, TEXT)


def test_options_are_applied(project: Path, pico: Callable[..., Path]) -> None:
    sets = ["verify=null", "passes.0.width.sparsity=0.5", "evaluation.data=demo:valid", "name='1e3'"]
    given = str(pico("llama"))
    text, published = as_run("recipes/r.yaml", *sets, model=given)
    assert paths(text) == [given, "recipes/text/train.txt", "demo:valid"]
    assert paths(published) == [pico("llama").name, "recipes/text/train.txt", "demo:valid"]
    recipe = parse_recipe(text, source="r.yaml", options=OPTIONS)
    assert (recipe.name, recipe.verify, recipe.passes[0].options.sparsity) == ("1e3", {}, 0.5)  # type: ignore[attr-defined]
