"""A model of two towers taken whole: which pass is for which tower, what is refused, and one artifact of two graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from compressor.errors import RecipeError
from compressor.exporters.safetensors import export_safetensors
from compressor.machine.progress import NullProgress
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import open_model
from compressor.model.parts import read_scalars
from compressor.pipeline import evaluate, inspect, plan, run
from compressor.pipeline.laid_out import join, laid_out, write_config
from compressor.pipeline.prepare import prepare
from compressor.pipeline.together import PartJob, WholeJob, verify_whole
from compressor.pipeline.whole import Whole, prepare_any
from compressor.report.schema import check_report
from compressor.verification import MANIFEST, REFERENCE, Verdict, seal, write_reference
from compressor.verification.joint import Side
from tests.pipeline.whole import recipe_for, two_towers, write_data
from tests.verification.test_sabotage import rehash, reseal

Pico = Callable[..., Path]
Finished = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and prompts."""
    return write_data(tmp_path_factory.mktemp("towers") / "data")


@pytest.fixture(scope="module")
def clip(pico: Pico, tmp_path_factory: pytest.TempPathFactory, data: Path) -> Finished:
    """A CLIP model, its artifact and its report."""
    return finish(two_towers(pico, "clip"), tmp_path_factory.mktemp("clip") / "artifact", data)


@pytest.fixture(scope="module")
def siglip(pico: Pico, tmp_path_factory: pytest.TempPathFactory, data: Path) -> Finished:
    """The same of SigLIP."""
    return finish(two_towers(pico, "siglip"), tmp_path_factory.mktemp("siglip") / "artifact", data)


def finish(model: Path, out: Path, data: Path) -> Finished:
    return model, out, run(recipe_for(data), model=str(model), out=out, progress=NullProgress())


@pytest.fixture(params=["clip", "siglip"])
def finished(request: pytest.FixtureRequest) -> Finished:
    """Either of them."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_one_artifact_of_both_graphs(finished: Finished) -> None:
    _, out, report = finished
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert {"vision_model.onnx", "text_model.onnx", "verification/vision.safetensors"} <= names
    assert {"config.json", "tokenizer.json", "preprocessor_config.json", "recipe.yaml", "README.md"} <= names
    assert not {"model.onnx", "verification/reference.safetensors"} & names
    assert report["verdict"] == "passed", [check for check in report["checks"] if not check["passed"]]
    checks = {check["name"] for check in report["checks"]}
    assert {"source.stock", "vision.source.stock", "text.parity.long.max_abs"} <= checks
    assert {"vision.parity.cosine", "vision.quality.cosine", "joint.scalars"} <= checks
    assert set(report["compressed"]["metrics"]) == {"accuracy", "top1", "kl", "cosine_vision", "cosine_text"}
    assert set(report["ratios"]["speedup"]) == {"vision", "text"} == set(report["dense"]["latency_ms"])
    assert report["ratios"]["bytes"] < 0.9 and [entry["part"] for entry in report["passes"]] == ["vision"]
    assert set(report["passes"][0]["quality_after"]) == {"cosine_vision"}
    assert check_report(report).model.task == "zero-shot-image-classification"


def test_the_folder_is_read_as_the_model_that_it_is(finished: Finished) -> None:
    model, out, report = finished
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.model_type == transformers.AutoConfig.from_pretrained(model).model_type
    assert config.vision_config.hidden_size == config.text_config.hidden_size == 48
    scalars = json.loads((out / MANIFEST).read_text())["scalars"]
    assert scalars == read_scalars(model) and "logit_scale" in scalars
    info = inspect(out)
    assert info["parameters"] == report["compressed"]["parameters"] and info["bytes"] == report["compressed"]["bytes"]
    assert {part: found["path"] for part, found in info["parts"].items()} == {
        "vision": "vision_model.onnx",
        "text": "text_model.onnx",
    }


def test_scores_are_those_of_the_whole_stock_model(finished: Finished, data: Path) -> None:
    """Of the artifact, by its own recipe; of the model, by stock transformers' own scores."""
    model, out, report = finished
    own = evaluate(str(out), data=str(data / "pics"), prompts=str(data / "prompts.csv"), progress=NullProgress())
    assert own.metrics == {"accuracy": report["compressed"]["metrics"]["accuracy"]} and own.samples == 12
    found = evaluate(
        str(model), data=str(data / "pics"), prompts=str(data / "prompts.csv"), against=str(model),
        progress=NullProgress(),
    )  # fmt: skip
    assert found.metrics["top1"] == 1.0 and found.metrics["kl"] == pytest.approx(0, abs=1e-12)


def verdict_on(victim: Path, dense: Side | None = None) -> Verdict:
    parts = dict.fromkeys(("vision", "text"), PartJob())
    return verify_whole(WholeJob(victim, parts, dense, timing=False))


def failures(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.failures}


@pytest.fixture
def victim(clip: Finished, tmp_path: Path) -> Path:
    """A copy of the artifact to damage."""
    return Path(shutil.copytree(clip[1], tmp_path / "victim"))


def test_another_graph_of_one_part_is_found(victim: Path) -> None:
    path = victim / "text_model.onnx"
    graph = onnx.load(str(path))
    tensor = next(t for t in graph.graph.initializer if len(t.dims) == 2 and min(t.dims) > 40)
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(-array), tensor.name))
    onnx.save(graph, str(path))
    with laid_out(victim, "text") as place:
        rehash(place)
        manifest = json.loads((victim / MANIFEST).read_text())
        manifest["parts"]["text"] = json.loads((place / MANIFEST).read_text())
    reseal(victim, manifest)
    rehash(victim)
    found = failures(verdict_on(victim))
    assert any(name.startswith("text.parity") for name in found)
    assert all(name.startswith("text.") for name in found), found


def test_other_numbers_that_join_the_parts_and_a_missing_graph_are_found(victim: Path) -> None:
    manifest = json.loads((victim / MANIFEST).read_text())
    scale = manifest["scalars"]["logit_scale"]
    manifest["scalars"]["logit_scale"] = scale + 1
    reseal(victim, manifest)
    with laid_out(victim, "text") as text:
        (victim / "vision_model.onnx").unlink()
        found = verdict_on(victim, Side({"vision": text, "text": text}, {"logit_scale": scale}))
    assert {"joint.scalars", "files.present", "vision.files.present"} <= failures(found)
    assert not any(name.startswith("text.") for name in failures(found)) and found.exit_code == 3


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"evaluation": {"data": "pics"}}, "evaluation.data: images are classified by prompts; add evaluation.prompts"),
        ({"passes": [{"gptq": {"bits": 8}}], "calibration": {"data": "pics", "samples": 4}},
         r"passes\[0\].gptq: the part text needs texts to calibrate on; add calibration.prompts"),
        ({"passes": [{"tome": {"r": 1, "part": "text"}}]}, r"passes\[0\].tome: "),
        ({"export": {"format": "ort"}}, "export.format: ort is not written for a model of several parts"),
        ({"model": {"task": "text-generation"}}, "model.task: text-generation is not what the whole model is for"),
        ({"evaluation": None, "verify": {"top1": {"min": 0.9}}}, "verify.top1: is measured on evaluation data"),
        ({"passes": [{"tome": {"r": 1}}], "sweep": {"tome.layers": [[1], [9]]}},
         r"sweep.'tome.layers': \[9\]: "),
        ({"report": {"images": 2}}, "report.images: tells which image tokens are kept, and no pass lets any go"),
        ({"verify": {"kept_tokens": {"max": 0.9}}}, "verify.kept_tokens: is measured where a pass lets"),
        ({"verify": {"cosine": {"min": 0.9}}}, "verify.cosine: is not measured for zero-shot-image-classification"),
    ],
)  # fmt: skip
def test_what_a_whole_model_cannot_give_is_refused(pico: Pico, data: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        prepare_any(recipe_for(data, **sections), str(two_towers(pico, "clip")))


def test_what_is_for_several_parts_is_refused_elsewhere(pico: Pico, data: Path) -> None:
    recipe = recipe_for(data, model={"part": "text"}, evaluation={"data": "prompts.csv", "prompts": "other.csv"})
    with pytest.raises(RecipeError) as error:
        prepare(recipe, str(two_towers(pico, "clip")))
    assert sorted(problem.where for problem in error.value.problems) == [
        "evaluation.prompts",
        "passes[0].int8-dynamic.part",
    ]


def test_a_pass_goes_to_the_parts_that_it_is_for(pico: Pico, data: Path) -> None:
    passes = [{"tome": {"r": 1}}, {"magnitude": {"sparsity": 0.3, "part": "text"}}, {"int8-dynamic": {}}]
    calibration = {"data": "pics", "prompts": "prompts.csv", "samples": 4}
    asked = {"export": {"kept_mask": True}, "verify": {"kept_tokens": {"max": 0.99}, "quality.cosine": {"min": 0.5}}}
    recipe = recipe_for(data, passes=passes, calibration=calibration, **asked)
    model = two_towers(pico, "clip")
    bound = prepare_any(recipe, str(model))
    assert isinstance(bound, Whole)
    assert {part: prepared.method_names for part, prepared in bound.parts.items()} == {
        "vision": ("tome", "int8-dynamic"),
        "text": ("magnitude", "int8-dynamic"),
    }
    assert recipe.resolved()["passes"][1]["magnitude"]["part"] == "text"
    planned = plan(recipe, model=str(model))
    assert planned["dense"]["parameters"] == planned["model"]["parameters"] > planned["planned"]["parameters"]
    assert [(entry["name"], entry["part"]) for entry in planned["passes"]] == [
        (name, part) for part, prepared in bound.parts.items() for name in prepared.method_names
    ]


def test_a_part_that_there_is_not_is_refused(data: Path) -> None:
    with pytest.raises(RecipeError, match=r"passes\[0\].tome.part: 'audio' is no part; allowed: auto, vision, text"):
        recipe_for(data, passes=[{"tome": {"r": 1, "part": "audio"}}])


def test_a_checkpoint_of_all_parts_is_the_stock_model_and_gives_them_back(pico: Pico, tmp_path: Path) -> None:
    model, folder, places = two_towers(pico, "siglip"), tmp_path / "whole", {}
    folder.mkdir()
    for part in ("vision", "text"):
        places[part] = tmp_path / part
        places[part].mkdir()
        export_safetensors(open_model(model, part=part), places[part])
        write_config(places[part], json.loads((places[part] / "config.json").read_text()))
        write_reference(TorchRunner(places[part]), places[part] / REFERENCE)
    hashes = {part: seal(place, {})["outputs"] for part, place in places.items()}
    join(places, model, folder, read_scalars(model))
    (folder / MANIFEST).write_text("{}")
    for part, wanted in hashes.items():
        with laid_out(folder, part) as place:
            assert seal(place, {})["outputs"] == wanted
    stock, info = transformers.SiglipModel.from_pretrained(folder, output_loading_info=True)
    dense = transformers.SiglipModel.from_pretrained(model).state_dict()
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(tensor, dense[name]) for name, tensor in stock.state_dict().items())


def test_a_checkpoint_that_stock_transformers_cannot_load_is_refused(pico: Pico, data: Path) -> None:
    recipe = recipe_for(data, export={"format": "safetensors"})
    with pytest.raises(RecipeError, match="export.format: safetensors: the part vision is quantized after the passes"):
        prepare_any(recipe, str(two_towers(pico, "clip")))
