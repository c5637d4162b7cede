"""`--set key=value`."""

from __future__ import annotations

import pytest


def test_values_are_read_as_yaml(parse, good):
    recipe = parse(
        good,
        "passes.0.width.sparsity=0.5",
        "passes[0].width.layers=[1, 2]",
        "calibration.samples=32",
        "model.id=other/model",
        "evaluation.metrics=[kl]",
        "export={format: safetensors}",
    )
    options = recipe.passes[0].options
    assert (options.sparsity, options.layers) == (0.5, (1, 2))
    assert recipe.calibration.samples == 32
    assert recipe.model.id == "other/model"
    assert recipe.evaluation.metrics == ["kl"]
    assert recipe.export.format == "safetensors"


def test_absent_sections_are_made_and_the_last_one_wins(parse):
    text = "version: 1\nname: x\npasses: []\n"
    recipe = parse(text, "verify.speedup.min=1.1", "verify.speedup.min=1.2", "calibration.data=a=b.txt")
    assert recipe.bounds == {"speedup": {"min": 1.2}}
    assert recipe.calibration.data == "a=b.txt"


def test_gates_are_named_as_they_are_printed(parse):
    text = "version: 1\nname: x\npasses: []\nverify: {quality.weight_only.kl: false, gain.effect: true}\n"
    recipe = parse(text, "verify.gain.dominated=false", "verify.quality.top1.min=0.1")
    assert recipe.bounds == {"quality.top1": {"min": 0.1}, "quality.weight_only.kl": {}, "gain.dominated": {}}
    assert recipe.resolved()["verify"]["gain.dominated"] is False


def test_options_of_a_method_that_had_none(parse):
    recipe = parse("version: 1\nname: x\npasses: [{width: }]\n", "passes.0.width.sparsity=0.2")
    assert recipe.passes[0].options.sparsity == 0.2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("samples", "--set samples: expected key=value, such as calibration.samples=32"),
        ("=3", "--set =3: expected key=value, such as calibration.samples=32"),
        ("a..b=3", "--set a..b=3: a part of the key is empty; write it such as passes.0.cfsp.sparsity=0.4"),
        (
            "passes.1.width.sparsity=1",
            "--set passes.1.width.sparsity=1: passes is a list and has positions 0 to 0; '1'",
        ),
        ("passes.x=1", "--set passes.x=1: passes is a list and has positions 0 to 0; 'x' is none of them"),
        ("passes.0.widht.sparsity=1", "--set passes.0.widht.sparsity=1: passes[0] holds 'width', not 'widht'"),
        ("name.x=1", "--set name.x=1: name is 'good', which has no key 'x'"),
        ("calibration.sampels=3", "--set calibration.sampels=3: unknown key (did you mean 'samples'?)"),
        ("calibration.samples=many", "--set calibration.samples=many: expected an integer, got 'many'"),
        ("passes.0.width.sparsity=2", "--set passes.0.width.sparsity=2: must be less than 1.0, got 2"),
        ("passes.0.width={}", "--set passes.0.width={}: passes[0].width.sparsity: required, but missing"),
        ("passes=[{widht: {}}]", "--set passes=[{widht: {}}]: passes[0].widht: unknown method (did you mean 'width'?)"),
        ("verify.kl.max=.nan", "--set verify.kl.max=.nan: numbers must be finite"),
        ("name=[", "--set name=[: not valid YAML"),
        ("name=*x", "--set name=*x: aliases (*x) are not read"),
        ("export.format=\x1b[31m", "--set "),
    ],
)
def test_wrong_overrides_are_named(override, expected, problems, good):
    (line,) = problems(good, override)
    assert line.startswith(expected)
    assert line.isprintable()


def test_an_override_mends_the_file(parse, problems, good):
    broken = good.replace("0.3}", "3}")
    assert problems(broken) == ["line 7: passes[0].width.sparsity: must be less than 1.0, got 3"]
    assert parse(broken, "passes.0.width.sparsity=0.3").passes[0].options.sparsity == 0.3


def test_problems_of_file_and_overrides_come_together(problems, good):
    found = problems(good.replace("name: good", "name: 3"), "calibration.samples=0", "x=1")
    assert [line.split(": ")[0] for line in found] == ["line 2", "--set calibration.samples=0", "--set x=1"]
