"""What a valid recipe becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.errors import RecipeError
from compressor.recipe import load_bounds, load_recipe, parse_bounds


def test_values_and_defaults(parse, good):
    recipe = parse(good)
    assert (recipe.name, recipe.model.id, recipe.model.task, recipe.export.graph) == ("good", "demo", "auto", "auto")
    assert recipe.calibration is not None
    assert (recipe.calibration.samples, recipe.calibration.seed, recipe.calibration.cache_memory) == (8, 0, 10**9)
    assert recipe.evaluation is not None
    assert recipe.evaluation.metrics == ["perplexity", "top1"]
    assert recipe.evaluation.samples is None
    assert [entry.name for entry in recipe.passes] == ["width"]
    assert recipe.passes[0].options.model_dump(mode="json") == {
        "sparsity": 0.3,
        "importance": "obs",
        "target": "ffn",
        "layers": "all",
        "symmetric": True,
        "solver": {"damping": 0.01},
    }
    assert recipe.bounds == {"perplexity_increase": {"max": 0.15}, "speedup": {"min": 1.3}}
    assert recipe.text == good


def test_set_values_are_told_from_defaults(parse, good):
    recipe = parse(good)
    assert "length" in recipe.calibration.model_fields_set
    assert "length" not in recipe.evaluation.model_fields_set


def test_smallest_recipe(parse):
    recipe = parse("version: 1\nname: plain\npasses: []\n")
    assert recipe.passes == ()
    assert recipe.calibration is None and recipe.evaluation is None and recipe.verify == {}
    assert recipe.export.format == "onnx"


def test_a_method_without_options_may_stand_alone(parse):
    recipe = parse("version: 1\nname: plain\npasses:\n  - int8-dynamic:\n  - int8-dynamic: {}\n")
    assert [entry.name for entry in recipe.passes] == ["int8-dynamic", "int8-dynamic"]


def test_options_of_richer_types(parse):
    recipe = parse(
        "version: 1\nname: r\npasses:\n  - width:\n      sparsity: 0\n      target: heads\n      layers: [1, 2]\n"
        "      solver: {damping: 1e-3}\n"
    )
    options = recipe.passes[0].options
    assert options.layers == (1, 2)
    assert options.target.value == "heads"
    assert options.solver.damping == 1e-3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("512MB", 512_000_000),
        ("512 mb", 512_000_000),
        ("1.5GB", 1_500_000_000),
        ("2MiB", 2 << 20),
        ("0", 0),
        ("10B", 10),
    ],
)
def test_sizes(parse, good, text, expected):
    assert parse(good, f"calibration.cache_memory={text}").calibration.cache_memory == expected


def test_resolved_holds_everything_in_effect_and_is_a_recipe_again(parse, good, toys):
    import json

    recipe = parse(good, "passes.0.width.sparsity=0.5")
    off = parse(good, "verify.gain.effect=false", "export.target=arm64")
    assert parse(json.dumps({k: v for k, v in off.resolved().items() if v is not None})).bounds == off.bounds
    resolved = recipe.resolved()
    assert resolved["passes"][0]["width"]["sparsity"] == 0.5
    assert resolved["calibration"]["samples"] == 8
    again = parse(json.dumps({key: value for key, value in resolved.items() if value is not None}))
    assert again.resolved() == resolved
    assert recipe.text == good and recipe.overrides == ("passes.0.width.sparsity=0.5",)


def test_words_mean_what_yaml_1_2_says(parse):
    assert parse("version: 1\nname: no\npasses: []").name == "no"
    assert parse("version: 1\nname: '1'\npasses: []").name == "1"


def test_load_knows_its_folder(tmp_path: Path, good, toys):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + good.replace("\n", "\r\n").encode())
    recipe = load_recipe(path, options=toys)
    assert recipe.folder == tmp_path.resolve()
    assert recipe.source == str(path)


def test_bounds_alone_and_within_a_recipe(tmp_path: Path, good):
    assert {k: v.to_json() for k, v in parse_bounds("kl: {max: 0.1}", source="b").items()} == {"kl": {"max": 0.1}}
    assert parse_bounds("version: 1\nname: x\npasses: []\n", source="b") == {}, "a recipe may bound nothing"
    path = tmp_path / "r.yaml"
    path.write_text(good)
    assert list(load_bounds(path)) == ["perplexity_increase", "speedup"]


@pytest.mark.parametrize("text", ["- 1", "kl: 3", "kl: {max: -1}", "kll: {max: 1}", "verify: 3", "verify: {x: {}}"])
def test_wrong_bounds(text):
    with pytest.raises(RecipeError, match="b: 1 problem"):
        parse_bounds(text, source="b")
