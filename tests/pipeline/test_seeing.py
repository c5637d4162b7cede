"""A LLaVA model taken whole: one artifact of three graphs, that answers questions about images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from compressor.data.kinds import Batches
from compressor.errors import DataError, RecipeError, UsageError
from compressor.exporters.safetensors import export_safetensors
from compressor.machine.progress import NullProgress
from compressor.measure.answers import SeeingModel
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.pipeline import evaluate, inspect, plan, run
from compressor.pipeline.judge_whole import dense_side
from compressor.pipeline.laid_out import join, laid_out, write_config
from compressor.pipeline.mixed import calibration_batches, seen_by
from compressor.pipeline.prepare import prepare
from compressor.pipeline.stated import own_sections
from compressor.pipeline.together import PartJob, WholeJob, verify_whole
from compressor.pipeline.towers import taken_out
from compressor.pipeline.whole import Whole, prepare_any
from compressor.report._snippets import usage
from compressor.report.facts import ArtifactFacts
from compressor.verification import MANIFEST, REFERENCE, seal, write_reference
from compressor.verification.joint import Side
from compressor.verification.source import DIFFERENCE
from compressor.verification.source_whole import compare_whole
from compressor.walk import Walk
from tests.pipeline.seeing import PROMPT, recipe_for, small_llava, write_questions

Pico = Callable[..., Path]
Finished = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions and their images."""
    return write_questions(tmp_path_factory.mktemp("questions")).parent


@pytest.fixture(scope="module")
def finished(pico: Pico, tmp_path_factory: pytest.TempPathFactory, data: Path) -> Finished:
    """A LLaVA model, its artifact and its report."""
    model, out = small_llava(pico), tmp_path_factory.mktemp("seeing") / "artifact"
    recipe = recipe_for(data, report={"images": 1})
    return model, out, run(recipe, model=str(model), out=out, progress=NullProgress())


def test_one_artifact_of_three_graphs(finished: Finished) -> None:
    _, out, report = finished
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert {"vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx", "tokenizer.json"} <= names
    assert {"processor_config.json", "preprocessor_config.json", "verification/language.safetensors"} <= names
    assert report["verdict"] == "passed", [check for check in report["checks"] if not check["passed"]]
    checks = {check["name"] for check in report["checks"]}
    assert {"source.stock", "vision.source.stock", "language.source.stock", "joint.image_token"} <= checks
    assert {"vision.tokens.overlap", "language.parity.exact.greedy", "quality.finite"} <= checks
    assert {"accuracy", "top1", "kl", "greedy", "kept_tokens"} == set(report["compressed"]["metrics"])
    assert set(report["ratios"]["speedup"]) == {"vision", "prefill", "decode"}
    assert {kind: entry["questions"] for kind, entry in report["kinds"].items()} == {"what": 6, "where": 6}
    assert len(report["greedy"]) == 3 and report["greedy"][0]["prompt"].startswith("<image> wh")
    assert [(entry["name"], entry["part"]) for entry in report["passes"]] == [
        ("fastervlm", "vision"),
        ("gptq", "language"),
    ]
    assert len(report["kept_tokens"]["images"]) == 1, "drawn for the image part"
    assert report["ratios"]["flops"] < 0.9, "ten of sixteen image tokens leave a prompt of 48"


def test_the_card_s_code_gives_the_answers_that_are_measured(finished: Finished, tmp_path: Path, data: Path) -> None:
    _, out, report = finished
    code = usage(report["model"]["task"], ArtifactFacts.of(out, report["model"]["task"]))
    code = code.partition("```python\n")[2].partition("```")[0]
    code = code.replace('"."', repr(str(out))).replace('"photo.jpg"', repr(str(data / "images" / "0.png")))
    names: dict[str, Any] = {}
    exec(code.replace("{processor.image_token} what is on the picture ?", "<image> what answer :"), names)
    assert int((names["ids"] == 320).sum()) == 6, "the processor makes as many places as features are left"
    with laid_out(out, "vision") as vision, laid_out(out, "language") as language:
        from compressor.measure.onnx_runner import OnnxRunner

        model = SeeingModel(OnnxRunner(vision), OnnxRunner(language), 320)
        features = model.features({"pixel_values": names["batch"]["pixel_values"]})[0]
        ids = [token for token in names["ids"][0].tolist() if token != 320]
        made = model.generate(features, np.asarray([320, *ids]), 16)
    assert made.tolist() == names["made"]


def test_an_artifact_is_inspected_and_evaluated(finished: Finished, data: Path) -> None:
    _, out, report = finished
    info = inspect(out)
    assert info["parameters"] == report["compressed"]["parameters"] and info["bytes"] == report["compressed"]["bytes"]
    assert sum(part["bytes"] for part in info["parts"].values()) == info["bytes"]
    found = evaluate(str(out), data=str(data), progress=NullProgress())
    assert found.metrics == {"accuracy": report["compressed"]["metrics"]["accuracy"]} and found.samples == 12
    config = transformers.AutoConfig.from_pretrained(out)
    assert (config.vision_feature_layer, config.vision_config.num_hidden_layers) == (-1, 2)


def test_what_an_artifact_lacks_and_another_image_token_are_found(finished: Finished, tmp_path: Path) -> None:
    import shutil

    victim = Path(shutil.copytree(finished[1], tmp_path / "victim"))
    config = json.loads((victim / "config.json").read_text())
    (victim / "config.json").write_text(json.dumps({**config, "image_token_index": 7}))
    with laid_out(victim, "vision") as vision, laid_out(victim, "language") as language:
        (victim / "embed_tokens.onnx").unlink()
        job = WholeJob(victim, {"vision": PartJob(), "language": PartJob()},
                       Side({"vision": vision, "language": language}, {}, 320), timing=False)  # fmt: skip
        found = verify_whole(job)
    failed = {check.name for check in found.failures}
    assert {"joint.image_token", "files.present", "files.unchanged"} <= failed and found.exit_code == 3


def test_the_model_to_compare_with_is_exported_as_the_artifact_was(finished: Finished) -> None:
    """Its language part too takes embeddings, in which features can stand."""
    model, out, _ = finished
    section, export = own_sections(out)
    with dense_side(str(model), out, section, export, NullProgress()) as side:
        assert side is not None and side.image_token == 320
        assert (side.parts["language"] / "embed_tokens.onnx").is_file()
        assert side.seeing(1).language.embed(np.asarray([[5, 9]])).shape == (1, 2, 40)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"evaluation": {"data": "questions.jsonl", "prompts": "p.csv"}}, "evaluation.prompts: is for models that"),
        ({"passes": [{"slicegpt": {"reduction": 0.2, "part": "language"}}]}, "slicegpt: rotates the stream"),
        ({"passes": [{"rsq": {"part": "language"}}]}, "rsq: rotates the stream of the part language.*rotate: false"),
        ({"export": {"format": "ort"}}, "export.format: ort is not written for a model of several parts"),
        ({"verify": {"cosine_text": {"min": 0.9}}}, "verify.cosine_text: is not measured for image-text-to-text"),
        ({"model": {"prompt": PROMPT, "task": "text-generation"}}, "model.task: text-generation is not what the whole"),
        ({"export": {"format": "safetensors"}}, "safetensors: the part vision .* computes something else"),
    ],
)  # fmt: skip
def test_what_a_whole_model_cannot_give_is_refused(pico: Pico, data: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        prepare_any(recipe_for(data, **sections), str(small_llava(pico)))


def test_questions_that_cannot_be_put_are_refused_before_work(pico: Pico, data: Path) -> None:
    model = small_llava(pico)
    with pytest.raises(DataError, match="has no chat template"):
        prepare_any(recipe_for(data, model={}), str(model))
    with pytest.raises(DataError, match="stands for the image, 0 times"):
        prepare_any(recipe_for(data, model={"prompt": "{question}"}), str(model))
    with pytest.raises(RecipeError, match="model.prompt: is for a LLaVA model that is taken whole"):
        prepare(recipe_for(data, model={"prompt": PROMPT, "part": "language"}, passes=[]), str(model))
    with pytest.raises(RecipeError, match="model.prompt: expected a text of visible characters that holds"):
        recipe_for(data, model={"prompt": "<image> question"})
    with pytest.raises(UsageError, match="--prompts: .* is asked questions about images"):
        evaluate(str(model), data=str(data), prompts="p.csv", progress=NullProgress())
    with pytest.raises(UsageError, match="--prompt: 'what'; allowed: a text that holds"):
        evaluate(str(model), data=str(data), prompt="what", progress=NullProgress())


def test_a_plan_counts_the_image_tokens_that_are_left(pico: Pico, data: Path) -> None:
    model = small_llava(pico)
    kept, fewer = (plan(recipe_for(data, passes=passes), model=str(model))
                   for passes in ([], [{"fastervlm": {"tokens": 6}}]))  # fmt: skip
    assert kept["length"] == fewer["length"] == 16 + 32
    assert kept["ratios"]["flops"] == 1.0 and fewer["ratios"]["flops"] < 0.9
    assert fewer["ratios"]["parameters"] == 1.0


def test_passes_inside_the_language_model_know_where_image_tokens_stand(pico: Pico, data: Path) -> None:
    model = str(pico("llava"))
    passes = [{"fastervlm": {"tokens": 6}}, {"fastv": {"layers": [1], "keep": 0.5}}]
    bound = prepare_any(recipe_for(data, passes=passes, model={"prompt": "what <image> {question} answer :"}), model)
    assert isinstance(bound, Whole) and bound.parts["vision"].method_names == ("fastervlm",)
    (reduction,) = bound.parts["language"].blueprints[-1].reductions
    asked = bound.parts["language"].load_calibration().questions[0]  # type: ignore[union-attr]
    assert (reduction.start, reduction.count, reduction.keep) == (asked.prompt.index(320), 6, 3)
    with pytest.raises(RecipeError, match=r"the prompts have 16 image tokens, from position 0 on; image says {'start'"):
        prepare_any(recipe_for(data, passes=[{"fastv": {"layers": [1], "keep": 0.5, "image": {"start": 3}}}]), model)
    with pytest.raises(RecipeError, match="fastv"):
        prepare_any(recipe_for(data, passes=[{"fastv": {"layers": [1], "keep": 0.5, "part": "vision"}}]), model)


def bound_to(data: Path, model: Path) -> Whole:
    bound = prepare_any(recipe_for(data), str(model))
    assert isinstance(bound, Whole)
    return bound


def test_the_language_model_is_calibrated_on_what_the_image_encoder_gives(
    pico: Pico, data: Path, tmp_path: Path
) -> None:
    """The stream that enters its first block is that of the stock model, with the same features in their places."""
    model = small_llava(pico)
    bound = bound_to(data, model)
    prepared = {part: taken_out(one, tmp_path / part) for part, one in bound.parts.items()
                if (tmp_path / part).mkdir() is None}  # fmt: skip
    method = methods()["fastervlm"]
    setting = Setting(work=tmp_path / "pass", fingerprint="", cache_bytes=1 << 20)
    vision, _ = apply_pass(method(method.Options(tokens=6)), prepared["vision"].source, Batches(tuple, 0), setting)
    seen = seen_by(prepared["language"], {"vision": vision})
    assert seen is vision and seen_by(prepared["vision"], {}) is None
    batches = calibration_batches(prepared["language"], seen, tmp_path, 1 << 20)
    rows = sum(len(batch["input_ids"]) for batch in batches)
    assert rows == 8 and all((batch["input_ids"] == 320).sum(axis=1).tolist() == [6] * len(batch["input_ids"])
                             for batch in batches)  # fmt: skip
    walk = Walk(prepared["language"].source, batches, work=tmp_path / "walk", cache_bytes=1 << 20)
    outputs = list(walk.outputs())
    language = TorchRunner(prepared["language"].source.path)
    joined = SeeingModel(TorchRunner(vision.path), language, 320)
    answers = prepared["language"].load_calibration()
    prompts = {(*asked.prompt, *asked.answer) for asked in answers.questions}  # type: ignore[union-attr]
    for batch, logits in zip(batches, outputs, strict=True):
        for ids, features, row in zip(batch["input_ids"], batch["image_features"], logits, strict=True):
            place = int(np.flatnonzero(ids == 320)[0])
            short = np.asarray([*ids[: place + 1], *ids[place + 6 :]])
            assert tuple(short.tolist()) in prompts
            np.testing.assert_allclose(row, joined.language.forward(joined.inputs(features, short))[0], atol=1e-5)


def exported(model: Path, folder: Path) -> dict[str, Path]:
    """Return the parts of a model as sealed artifacts of safetensors."""
    places = {}
    for part in ("vision", "language"):
        places[part] = folder / part
        places[part].mkdir(parents=True)
        export_safetensors(open_model(model, part=part), places[part])
        write_config(places[part], json.loads((places[part] / "config.json").read_text()))
        write_reference(TorchRunner(places[part]), places[part] / REFERENCE)
    return places


def test_a_checkpoint_of_all_parts_is_the_stock_model_and_gives_them_back(pico: Pico, tmp_path: Path) -> None:
    model, folder = small_llava(pico), tmp_path / "whole"
    folder.mkdir()
    places = exported(model, tmp_path)
    hashes = {part: seal(place, {})["outputs"] for part, place in places.items()}
    runners = [TorchRunner(place) for place in places.values()]
    join(places, model, folder, {})
    (folder / MANIFEST).write_text("{}")
    for part, wanted in hashes.items():
        with laid_out(folder, part) as place:
            assert seal(place, {})["outputs"] == wanted
    stock, info = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8))
    given = processor(images=image, text="<image> where is the clock answer :", return_tensors="pt")
    with torch.no_grad():
        made = stock.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=None)
    joined = SeeingModel(*runners, 320)
    ids = [token for token in given["input_ids"][0].tolist() if token != 320]
    ours = joined.generate(joined.features({"pixel_values": given["pixel_values"].numpy()})[0],
                           np.asarray([320, *ids]), 6)  # fmt: skip
    assert ours.tolist() == made[0, given["input_ids"].shape[1] :].tolist()


def test_the_source_gate_compares_the_whole(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_llava(pico)
    facts = compare_whole(model)
    assert facts["class"] == "LlavaForConditionalGeneration" and facts[DIFFERENCE] < 1e-4
    load = ModelFolder.load

    def other(self: ModelFolder) -> Any:
        found = load(self)
        if self.family.inputs == "pixels":
            with torch.no_grad():
                found.multi_modal_projector.linear_2.bias.add_(1.0)
        return found

    monkeypatch.setattr(ModelFolder, "load", other)
    with pytest.raises(Exception, match="give other scores than stock transformers' LlavaForConditionalGeneration"):
        compare_whole(model)
