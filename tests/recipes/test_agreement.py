"""Options of the real methods that cannot be, and parts of a recipe that cannot go together."""

from __future__ import annotations

import pytest

from compressor.errors import RecipeError
from compressor.passes import methods
from compressor.recipe import disagreements, parse_recipe

OPTIONS = {name: method.Options for name, method in methods().items()}
DATA = "calibration: {data: x.txt}\nevaluation: {data: y.txt}\n"


def read(passes, rest=DATA, overrides=()):
    """Return a recipe whose passes, if it has any, begin in line 4."""
    lines = "".join(f"\n  - {item}" for item in passes) or " []"
    text = f"version: 1\nname: x\npasses:{lines}\n{rest}"
    return parse_recipe(text, source="r.yaml", options=OPTIONS, overrides=overrides)


def found(passes, rest=DATA, overrides=()):
    recipe = read(passes, rest, overrides)
    return [str(p) for p in disagreements(recipe, [methods()[e.name](e.options) for e in recipe.passes])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rtn: {bits: 3}", "bits: allowed: 2, 4, 8 or auto, got 3"),
        ("gptq: {bits: auto}", ": bits: auto needs a budget, the share of float32's bytes to keep"),
        ("gptq: {bits: 4, budget: 0.2}", ": budget is for bits: auto, and bits is 4; set bits: auto, or leave budget"),
        ("awq: {steps: 99999999999999999999}", "steps: must be at most 100, got 1e+20"),
        (
            "int8-static: {smooth: -300}",
            "smooth: allowed: auto, fold, none or a number of at least 0.0, got -300",
        ),
        (
            "int8-dynamic: {smooth: 1.5}",
            "smooth: allowed: auto, fold, none or a number of at most 1.0, got 1.5",
        ),
        (
            "int8-static: {method: minmax, percentile: 99}",
            ": percentile is for method: percentile, and method is minmax; leave one out",
        ),
        ("int8-static: {percentile: 99}", ": percentile is for method: percentile, and method is mse"),
    ],
)
def test_options_that_cannot_be(line, message):
    with pytest.raises(RecipeError) as caught:
        read([line])
    (problem,) = caught.value.problems
    dot = "" if message.startswith(":") else "."
    assert str(problem).startswith(f"line 4: passes[0].{line.partition(':')[0]}{dot}{message}")


def test_options_that_can():
    recipe = read(["int8-static: {method: percentile, percentile: 99, smooth: 0.5}", "rtn: {bits: auto, budget: 0.2}"])
    assert recipe.passes[0].options.percentile == 99 and recipe.passes[0].options.smooth == 0.5


OFF_GRIDS = "has quantized the weights, and any change would take them off their grids; put"


@pytest.mark.parametrize(
    ("passes", "rest", "expected"),
    [
        (["width: {sparsity: 0.3}", "gptq: {}"], DATA, []),
        (["fp16: {}", "width: {sparsity: 0.3}"], DATA, []),
        (["rtn: {}", "int8-dynamic: {}", "fp16: {}"], "", ["line 5: passes[1].int8-dynamic: rtn has quantized the"
          " weights already; a recipe has one quantizer: remove one of them", "line 6: passes[2].fp16: the weights lie"
          " on integer grids, whose scales are float32: float16 has nothing to add; remove it"]),
        (["fp16: {}", "rtn: {}"], "", ["line 5: passes[1].rtn: fp16 has quantized the weights already; a recipe has one"
          " quantizer: remove one of them"]),
        (["rtn: {}", "width: {sparsity: 0.3}", "magnitude: {sparsity: 0.3}"], DATA, [
            f"line 5: passes[1].width: rtn {OFF_GRIDS} width before it",
            f"line 6: passes[2].magnitude: rtn {OFF_GRIDS} magnitude before it"]),
        (["bf16: {}"], "export: {format: onnx}", ["line 4: passes[0].bf16: bfloat16 cannot be exported as onnx: ONNX"
          " Runtime's CPU kernels do not compute in it; set export.format to safetensors, or use fp16"]),
        (["fp16: {}"], "export: {dtype: float32}", ["line 4: passes[0].fp16: the pass makes the artifact float16,"
          " export.dtype says float32; leave it auto"]),
        (["rtn: {}"], "export: {dtype: float16}", ["line 4: passes[0].rtn: scales of quantized weights are float32,"
          " export.dtype says float16; leave it auto"]),
        (["rtn: {}"], "", []),
        (["rtn: {bits: auto, budget: 0.2}"], "", ["line 4: passes[0].rtn: needs calibration data, and the recipe names"
          " none; add `calibration: {data: ...}`"]),
        ([], "verify: {size_ratio: {max: 1}, accuracy_drop: {max: 1}}", ["line 4: verify.accuracy_drop: is measured on"
          " evaluation data, and the recipe names none; add `evaluation: {data: ...}`"]),
        ([], "verify: {gain.effect: false, quality.top1: {min: 0}}", ["line 4: verify.quality.top1: is measured on"
          " evaluation data, and the recipe names none; add `evaluation: {data: ...}`"]),
        ([], "report: {images: 2}", ["line 4: report.images: shows evaluation images, and the recipe names none; add"
          " `evaluation: {data: ...}`"]),
    ],
)  # fmt: skip
def test_what_cannot_go_together(passes, rest, expected):
    assert found(passes, rest or "verify: {}\n") == expected


def test_what_comes_from_an_override_says_so():
    (problem,) = found(["gptq: {}"], overrides=["calibration=null"])
    assert problem.startswith("line 4: passes[0].gptq: needs calibration data")
    (problem,) = found(["rtn: {}"], overrides=["verify.kl={max: 1}", "evaluation=null"])
    assert problem.startswith("--set verify.kl={max: 1}: is measured on evaluation data")
