"""The shipped recipes: found, valid, described."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor._shipped import find, locate, shipped
from compressor.errors import UsageError
from compressor.passes import methods
from compressor.recipe import load_recipe

NAMES = sorted(shipped())


def test_all_files_of_the_checkout_are_found(repository: Path):
    files = sorted((repository / "recipes").rglob("*.yaml"))
    assert [recipe.path for recipe in shipped().values()] == files
    assert "demo/llama-ffn-30" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_valid_and_described(name):
    recipe = find(name)
    options = {key: method.Options for key, method in methods().items()}
    parsed = load_recipe(recipe.path, options=options)
    assert parsed.passes and parsed.evaluation is not None and parsed.verify
    assert len(recipe.summary) > 20
    header = recipe.path.read_text(encoding="utf-8").split("version:")[0]
    assert all(f"#   {word} " in header for word in ("size", "quality", "speed", "time"))


@pytest.mark.parametrize(
    "given", ["demo/llama-ffn-30", "recipes/demo/llama-ffn-30.yaml", "./recipes/demo/llama-ffn-30.yaml", "llama-ffn-30"]
)
def test_names_are_understood_from_anywhere(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(given) == shipped()["demo/llama-ffn-30"].path


def test_a_file_comes_before_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-ffn-30").write_text("version: 1")
    assert locate("llama-ffn-30") == Path("llama-ffn-30")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "demo/llama-fnn-30",
            r"no such file, and no shipped recipe of that name \(did you mean 'demo/llama-ffn-30'\?\)",
        ),
        ("llama-fnn-30", r"did you mean 'demo/llama-ffn-30'"),
        ("", "no recipe given"),
        (".", "a folder; give the recipe's file"),
        ("a\x00b", "no such file"),
        ("x" * 5000, "no such file"),
        ("../../etc/passwd", "no such file"),
    ],
)
def test_unknown_names(given, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=expected):
        locate(given)


def test_a_short_name_of_several_is_refused(tmp_path, monkeypatch):
    import compressor

    for folder in ("a", "b"):
        (tmp_path / "recipes" / folder).mkdir(parents=True)
        (tmp_path / "recipes" / folder / "same.yaml").write_text("# One of two recipes of that name.\n")
    monkeypatch.setattr(compressor, "__path__", [str(tmp_path)])
    assert list(shipped()) == ["a/same", "b/same"]
    assert find("a/same").summary == "One of two recipes of that name."
    with pytest.raises(UsageError, match="several recipes end so: a/same, b/same"):
        find("same")


@pytest.mark.parametrize("name", NAMES)
def test_its_demo_data_is_enough_for_it(name):
    from compressor.pipeline.prepare import prepare

    options = {key: method.Options for key, method in methods().items()}
    recipe = load_recipe(find(name).path, options=options)
    if recipe.model.id != "demo":
        pytest.skip(f"its model {recipe.model.id} and its data are the reader's own")
    prepared = prepare(recipe, None)
    if recipe.calibration is not None or any(method.needs.calibration == "must" for method in prepared.passes):
        assert len(prepared.load_calibration()) == recipe.calibration.samples
    assert prepared.load_evaluation() is not None
