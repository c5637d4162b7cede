"""What is found wrong before work begins: the place in the recipe, what is allowed, and all of it at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from compressor.errors import DataError, ModelError, RecipeError
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.pipeline import plan
from compressor.pipeline.prepare import prepare, sample_length
from compressor.recipe import Recipe, parse_recipe

Pico = Callable[..., Path]
OPTIONS = {name: method.Options for name, method in methods().items()}
TEXT = "calibration: {data: t.txt, length: 32}\nevaluation: {data: t.txt, length: 32}\n"


def read(passes: list[str], rest: str = TEXT, folder: Path | None = None) -> Recipe:
    """Return a recipe whose passes, if it has any, begin in line 4."""
    lines = "".join(f"\n  - {item}" for item in passes) or " []"
    text = f"version: 1\nname: x\npasses:{lines}\n{rest}"
    return parse_recipe(text, source="r.yaml", options=OPTIONS, folder=folder)


def problems(recipe: Recipe, model: Path) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plan(recipe, model=str(model))
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def test_all_at_once_with_line_and_next_step(pico: Pico) -> None:
    passes = ["width: {sparsity: 0.999999, round_to: 64}", "gptq: {bits: auto, budget: 0.01}", "rtn: {exclude: [x]}"]
    narrow, budget, second, excluded, metric = problems(
        read(passes, TEXT + "verify: {cosine: {min: 0}}"), pico("llama")
    )
    assert narrow.startswith("line 4: passes[0].width: ")
    assert budget.startswith("line 5: passes[1].gptq: budget: 0.01 of the matrices' float32 bytes is asked for")
    assert ". Allowed: 0." in budget and "a larger group_size takes less." in budget
    assert second.startswith("line 6: passes[2].rtn: gptq has quantized the weights already")
    assert excluded.startswith("line 6: passes[2].rtn: exclude: 'x' matches no linear module")
    assert metric.startswith("line 9: verify.cosine: is not measured for text-generation on text; allowed: perplexity,")


@pytest.mark.parametrize(
    ("passes", "exact"),
    [
        (["gptq: {bits: 4}"], True),
        (["width: {sparsity: 0.3, allocation: global}"], True),
        (["width: {sparsity: 0.3, allocation: uniform}", "gptq: {bits: 4}"], True),
        (["width: {sparsity: 0.3, allocation: global}", "gptq: {bits: 4}"], False),
        (["cfsp: {sparsity: 0.3}", "int8-dynamic: {}"], False),
        (["gptq: {bits: auto, budget: 0.3}"], False),
        (["int8-static: {sensitive: 0.3}"], False),
    ],
)
def test_plan_says_whether_its_bytes_are_exact(pico: Pico, passes: list[str], exact: bool) -> None:
    assert plan(read(passes), model=str(pico("llama")))["bytes_exact"] is exact


def test_calibration_that_is_missing_is_found_by_plan(pico: Pico) -> None:
    passes = ["gptq: {exclude: [x]}"]
    first, second = problems(read(passes, "model: {id: demo}"), pico("llama"))
    assert first.startswith("line 4: passes[0].gptq: needs calibration data, and the recipe names none")
    assert second.startswith("line 4: passes[0].gptq: exclude: ")


@pytest.mark.parametrize(
    ("exclude", "said"),
    [
        (
            "['*layers.0.*', model.layers.1.mlp.down_prj]",
            "exclude: 'model.layers.1.mlp.down_prj' matches no linear module or embedding (did you mean"
            " 'model.layers.1.mlp.down_proj'?). Allowed: names such as model.embed_tokens and lm_head, with *",
        ),
        ("[model.layers.0]", "exclude: 'model.layers.0' matches no linear module"),
        ("['*']", "exclude: nothing is left to quantize. Exclude less, or remove the pass."),
    ],
)
@pytest.mark.parametrize("method", ["rtn", "int8-dynamic"])
def test_modules_to_exclude_must_be_there_and_leave_some(pico: Pico, method: str, exclude: str, said: str) -> None:
    (problem,) = problems(read([f"{method}: {{exclude: {exclude}}}"]), pico("llama"))
    assert problem.startswith(f"line 4: passes[0].{method}: {said}")


def test_a_module_that_would_not_be_quantized_may_be_excluded(pico: Pico) -> None:
    assert prepare(read(["rtn: {exclude: [lm_head, '*.0.*']}"]), str(pico("llama"))).blueprints[1].grids


def test_a_quantized_model_is_not_compressed_again(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = prepare(read(["rtn: {}"]), str(pico("llama")))
    model = quantized.source.with_blueprint(quantized.blueprints[1])
    monkeypatch.setattr("compressor.pipeline.prepare.open_model", lambda *args, **given: model)
    (problem,) = problems(read(["width: {sparsity: 0.3}"]), pico("llama"))
    assert problem.startswith("line 4: passes[0].width: the model is quantized already")
    assert "Give the model that it was made from." in problem


ROWS = {"pairs.csv": "one,two,3\nthree,four,1\n", "labels.csv": "one,0\ntwo,1\n", "plain.txt": "one\ntwo\n"}


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    for name, text in ROWS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("family", "task", "rest", "expected"),
    [
        ("llama", "auto", "{data: plain.txt, metrics: [kl, accuracy]}\n"
         "verify: {accuracy: {min: 0}, spearman: {min: 0}}", [
            "line 5: evaluation.metrics[1]: accuracy is not measured for text-generation on text; allowed: perplexity,"
            " kl, top1",
            "line 6: verify.accuracy: is not measured for text-generation on text; allowed: perplexity,",
            "line 6: verify.spearman: is not measured for text-generation on text; allowed: perplexity,"]),
        ("llama", "auto", "{data: plain.txt}\nverify: {speedup_forward: {min: 1}, latency_decode_ms: {max: 1}}", [
            "line 6: verify.speedup_forward: is not measured for text-generation on text"]),
        ("bert", "auto", "{data: pairs.csv, metrics: [spearman]}\nverify: {top1: {min: 0}, speedup_decode: {min: 1},"
         " spearman_drop: {max: 1}}", [
            "line 6: verify.speedup_decode: is not measured for feature-extraction on sentence pairs with scores",
            "line 6: verify.top1: is not measured for feature-extraction on sentence pairs with scores; allowed:"
            " cosine, cosine_min, spearman, spearman_drop, size_ratio,"]),
        ("bert", "auto", "{data: plain.txt}\nverify: {spearman: {min: 0}}", [
            "line 6: verify.spearman: is not measured for feature-extraction on sentences without labels; allowed:"
            " cosine, cosine_min, size_ratio,"]),
        ("bert", "text-classification", "{data: nowhere.csv, metrics: [spearman]}", [
            "line 5: evaluation.metrics[0]: spearman is not measured for text-classification on labelled samples;"
            " allowed: accuracy, top1, kl"]),
        ("vit", "auto", "{data: nowhere, metrics: [perplexity]}", [
            "line 5: evaluation.metrics[0]: perplexity is not measured for image-classification on labelled samples"]),
        ("vit", "auto", "{data: nowhere}\nexport: {kept_mask: true}\nreport: {images: 2}\n"
         "verify: {kept_tokens: {max: 0.7}}", [
            "line 6: export.kept_mask: tells which image tokens are kept, and no pass lets any go; add a token pass",
            "line 7: report.images: tells which image tokens are kept",
            "line 8: verify.kept_tokens: is measured where a pass lets image tokens go, and none does"]),
    ],
)  # fmt: skip
def test_what_is_never_measured(
    pico: Pico, shelf: Path, family: str, task: str, rest: str, expected: list[str]
) -> None:
    found = problems(read([], f"model: {{task: {task}}}\nevaluation: {rest}", shelf), pico(family))
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


def test_kept_tokens_are_those_of_images(pico: Pico, shelf: Path) -> None:
    rest = "evaluation: {data: plain.txt}\nexport: {kept_mask: true}\nverify: {kept_tokens: {max: 0.7}}"
    found = problems(read(["received: {keep: 0.5}"], rest, shelf), pico("bert"))
    assert [problem.partition(";")[0] for problem in found] == [
        "line 6: export.kept_mask: is for images",
        "line 7: verify.kept_tokens: is for images",
    ]


@pytest.mark.parametrize(
    ("family", "task", "rest"),
    [
        ("llama", "auto", "{data: plain.txt, metrics: [kl]}\nverify: {perplexity_increase: {max: 1}, bytes: {max: 9}}"),
        ("bert", "text-classification", "{data: labels.csv}\nverify: {accuracy_drop: {max: 1}}"),
        ("bert", "auto", "{data: nowhere.csv}\nverify: {spearman: {min: 0}, speedup_forward: {min: 0}}"),
        ("vit", "auto", "{data: nowhere}\nverify: {kl: {max: 1}, latency_forward_ms: {max: 9}}"),
    ],
)
def test_what_may_be_measured(pico: Pico, shelf: Path, family: str, task: str, rest: str) -> None:
    assert prepare(read([], f"model: {{task: {task}}}\nevaluation: {rest}", shelf), str(pico(family)))


def test_tokens_per_sample(pico: Pico) -> None:
    model = open_model(pico("llama"))
    assert [sample_length(model, stated, "x") for stated in (None, 1, 256)] == [256, 1, 256]
    with pytest.raises(DataError, match="x: 257 tokens; the model has 256 positions") as caught:
        sample_length(model, 257, "x")
    assert caught.value.hint == "Set x to at most 256."
    images: ModelFolder = open_model(pico("vit"))
    assert sample_length(images, 10_000, "x") == 10_000, "images have no positions to run out of"


def _without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def _without_a_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1.mlp.up_proj" not in k}, model / "model.safetensors")


def _without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def _with_a_damaged_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_weights, "safetensors"),
        (_without_a_tensor, r"layers\.1\.mlp\.up_proj"),
        (_without_tokenizer, "has no tokenizer"),
        (_with_a_damaged_tokenizer, "tokenizer of .* cannot be used"),
    ],
)
def test_plan_refuses_a_folder_that_a_run_would(
    pico: Pico, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    model = Path(shutil.copytree(pico("llama"), tmp_path / "model"))
    (tmp_path / "text.txt").write_text("some text")
    recipe = read([], "evaluation: {data: text.txt, length: 32}", tmp_path)
    assert plan(recipe, model=str(model))["notes"] == []
    damage(model)
    with pytest.raises((ModelError, DataError), match=said):
        plan(recipe, model=str(model))


def test_plan_can_do_without_data_and_says_so(pico: Pico) -> None:
    (note,) = plan(read([], "evaluation: {data: nowhere.txt, length: 32}"), model=str(pico("llama")))["notes"]
    assert note == "evaluation.data: nowhere.txt: no such file or folder; a run needs it"
