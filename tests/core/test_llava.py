"""The towers of a LLaVA model: what is read of it, and the tokens that leave its image encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compressor.data.kinds import Batches, ImageData
from compressor.errors import CompressorError, ModelError, UsageError
from compressor.exporters.onnx import export_onnx
from compressor.exporters.remote_code import add_remote_code
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.streamed import StreamedRunner
from compressor.model.config import config_for
from compressor.model.folder import ModelFolder, open_model
from compressor.model.image_places import image_features, told_alike
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.verification.source import DIFFERENCE, compare

Pico = Callable[..., Path]
PIXELS = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32))


def altered(source: Path, folder: Path, rename: Callable[[str], str] = str, **keys: Any) -> Path:
    """Return a copy of a model whose config.json has other keys, and whose tensors have other names."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def planned(source: ModelFolder, name: str, **options: Any) -> ModelFolder:
    """Return a model as a pass without weights of its own has it."""
    method = methods()[name]
    return source.with_blueprint(method(method.Options(**options)).plan(source, Target()))


@pytest.mark.parametrize(
    ("layer", "blocks", "strategy", "tokens"),
    [(-2, 3, "default", 16), (-1, 4, "full", 17), (2, 2, "full", 17)],
)
def test_the_vision_part_gives_the_image_features_of_the_whole(
    pico: Pico, tmp_path: Path, layer: int, blocks: int, strategy: str, tokens: int
) -> None:
    folder = altered(
        pico("llava"), tmp_path / "whole", vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )
    source = open_model(folder, part="vision")
    assert len(source.shapes.layers) == blocks and compare(source)[DIFFERENCE] < 1e-6
    (tmp_path / "alone").mkdir()
    export_safetensors(source, tmp_path / "alone")
    alone = open_model(tmp_path / "alone")
    assert alone.parameters == source.parameters and not (tmp_path / "alone" / "tokenizer.json").exists()
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = torch.stack(list(whole.get_image_features(PIXELS).pooler_output))
        found = alone.load()(pixel_values=PIXELS).last_hidden_state
    assert found.shape == (2, tokens, 40)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def newest(name: str) -> str:
    """Return the name that the modules of transformers give a tensor."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


def first_releases(name: str) -> str:
    """Return the name that a checkpoint of the first releases has for a tensor."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


@pytest.mark.parametrize("part", ["vision", "language"])
@pytest.mark.parametrize("rename", [str, newest, first_releases])
def test_names_of_all_releases_are_read(pico: Pico, tmp_path: Path, part: str, rename: Callable[[str], str]) -> None:
    source = open_model(altered(pico("llava"), tmp_path / "whole", rename), part=part)
    assert compare(source)[DIFFERENCE] < 1e-6
    (tmp_path / "alone").mkdir()
    export_safetensors(source, tmp_path / "alone")
    assert open_model(tmp_path / "alone").weights.names() == source.weights.names()


def test_the_language_part_is_a_model_that_stock_transformers_loads(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("llava"), part="language")
    assert source.task == "text-generation" and source.family.name == "llama"
    export_safetensors(source, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file() and not (tmp_path / "preprocessor_config.json").exists()
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(source.path).eval()
    ids = torch.arange(2, 24).reshape(2, 11)
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, whole(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is \[-2, -1\]; covered .*-4 to -1, or 1 to 4"),
        ({"vision_feature_layer": 5}, "vision_feature_layer is 5"),
        ({"vision_feature_layer": 0}, "vision_feature_layer is 0"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model'; covered here: clip_vision"),
    ],
)
def test_what_is_not_covered_is_said(pico: Pico, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_model(altered(pico("llava"), tmp_path / "whole", **keys), part="vision")


def test_fastervlm_keeps_what_the_class_token_attends_to(pico: Pico, tmp_path: Path) -> None:
    """Against the formula in float64, on the attention that stock transformers shows."""
    source = open_model(pico("llava"), part="vision")
    model = planned(source, "fastervlm", tokens=6, layer=2)
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(source.path, attn_implementation="eager").eval()
    with torch.no_grad():
        everything = torch.stack(list(whole.get_image_features(PIXELS).pooler_output))
        attentions = whole.model.vision_tower(PIXELS, output_attentions=True).attentions
        found = model.load()(pixel_values=PIXELS).last_hidden_state
    scores = attentions[1].double().numpy()[:, :, 0, 1:].mean(1)
    kept = torch.from_numpy(np.sort(np.argsort(-scores, axis=1)[:, :6], axis=1))
    wanted = everything.gather(1, kept[..., None].expand(-1, -1, 40))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    assert export_onnx(model, tmp_path).outputs == ["image_features"]
    given = OnnxRunner(tmp_path).forward({"pixel_values": PIXELS.numpy()})
    np.testing.assert_allclose(given, wanted.numpy(), atol=1e-5)
    data = ImageData(Batches(lambda: iter([{"pixel_values": PIXELS.numpy()}]), 1), 2)
    streamed = StreamedRunner(model, data, tmp_path / "walk", 1 << 20).forward({"pixel_values": PIXELS.numpy()})
    np.testing.assert_allclose(streamed, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["fastervlm", "random-visual-tokens", "tome"])
def test_the_modelling_file_computes_the_same(pico: Pico, tmp_path: Path, name: str) -> None:
    source = open_model(pico("llava_vision"))
    model = planned(source, name, **({"r": 2} if name == "tome" else {"keep": 0.4}))
    config = config_for(model, model.blueprint)
    add_remote_code(model, config, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copyfile(source.path / "model.safetensors", tmp_path / "model.safetensors")
    theirs = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    ours = open_model(tmp_path)
    assert ours.blueprint == model.blueprint
    with torch.no_grad():
        wanted, found = (m(pixel_values=PIXELS).last_hidden_state for m in (ours.load(), theirs))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("fastervlm", 6), ("tome", 10)])
def test_a_prompt_has_as_many_places_as_there_are_features(pico: Pico, tmp_path: Path, name: str, count: int) -> None:
    whole = pico("llava")
    folders = [tmp_path / part for part in ("alone", "passed")]
    folders[0].mkdir()
    export_safetensors(open_model(whole, part="vision"), folders[0])
    source, method = open_model(folders[0]), methods()[name]
    options = {"tokens": count} if name == "fastervlm" else {"r": 2}
    setting = Setting(work=folders[1], fingerprint="places", cache_bytes=1 << 20)
    model, _ = apply_pass(method(method.Options(**options)), source, Batches(lambda: iter(()), 0), setting)
    assert image_features(model) == count
    assert told_alike(model.path, source.path, model) and not told_alike(source.path, source.path, model)
    shutil.copyfile(whole / "tokenizer.json", model.path / "tokenizer.json")
    shutil.copyfile(whole / "tokenizer_config.json", model.path / "tokenizer_config.json")
    processor = transformers.AutoProcessor.from_pretrained(model.path)
    given = processor(images=PIXELS.new_zeros(32, 32, 3).byte().numpy(), text="<image>", return_tensors="pt")
    with torch.no_grad():
        features = model.load()(pixel_values=given["pixel_values"]).last_hidden_state
    assert int((given["input_ids"] == 320).sum()) == count == features.shape[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokens": 16}, ModelError, "an image has 16 patch tokens, and 16 are to go on"),
        ({"tokens": 4, "layer": 4}, UsageError, r"fastervlm.layer: block 4 of an encoder of which 3 run"),
    ],
)
def test_what_changes_nothing_is_refused(
    pico: Pico, options: dict[str, int], error: type[CompressorError], message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(open_model(pico("llava"), part="vision"), "fastervlm", **options)


def test_a_selection_where_no_tokens_are_handed_on_is_refused(pico: Pico) -> None:
    source = open_model(pico("llava_vision"))
    selection = planned(source, "fastervlm", keep=0.5).blueprint.reductions
    other = open_model(pico("clip_vision_model"))
    edited = other.with_blueprint(replace(other.blueprint, reductions=selection))
    with pytest.raises(ModelError, match="site 'output'"):
        edited.skeleton()
