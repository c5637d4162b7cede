"""One tower of a model of two: what is read of it, and that it computes what the whole model computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compressor.data.images import SETTINGS
from compressor.errors import ModelError
from compressor.exporters.safetensors import export_safetensors
from compressor.model.folder import load, open_model
from compressor.verification import source_whole
from compressor.verification.source import DIFFERENCE, compare
from compressor.verification.source_whole import compare_whole
from compressor.verification.tokens import check_tokenizer, probe_record
from tests.core.test_loading import inputs_of

Pico = Callable[..., Path]
PARTS = [("clip", "vision"), ("clip", "text"), ("siglip", "vision"), ("siglip", "text")]


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_a_tower_gives_what_the_whole_model_gives(pico: Pico, tmp_path: Path, family: str, part: str) -> None:
    source = open_model(pico(family), part=part)
    assert source.part == part and source.task == "feature-extraction"
    assert compare(source)[DIFFERENCE] < 1e-6
    export_safetensors(source, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file() == (part == "text") != (tmp_path / SETTINGS).is_file()
    alone = open_model(tmp_path)
    assert alone.part is None and alone.parameters == source.parameters
    whole = transformers.AutoModel.from_pretrained(source.path).eval()
    features = whole.get_image_features if part == "vision" else whole.get_text_features
    inputs = inputs_of(source)
    if part == "text":
        inputs["input_ids"][:, -1] = 1
    with torch.no_grad():
        theirs, ours = features(**inputs), alone.load()(**inputs)
    embeddings = next(ours[name] for name in source.family.pooled if ours.get(name) is not None)
    torch.testing.assert_close(embeddings, theirs.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_towers_joined_give_what_the_whole_model_gives(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    assert compare_whole(pico(family))[DIFFERENCE] < 1e-6
    true = source_whole.read_scalars(pico(family))
    monkeypatch.setattr(source_whole, "read_scalars", lambda folder: true | {"logit_scale": true["logit_scale"] * 1.01})
    with pytest.raises(ModelError, match="joined, give other scores than stock transformers'"):
        compare_whole(pico(family))


def test_the_projection_has_the_width_of_the_whole_model(pico: Pico) -> None:
    source = open_model(pico("clip", projection_dim=24), part="vision")
    assert source.weights.shape("visual_projection.weight") == (24, 48)
    assert compare(source)[DIFFERENCE] < 1e-6


def test_a_config_of_the_first_releases(pico: Pico, tmp_path: Path) -> None:
    """It states the towers twice, and a token for the end of a text that no text has: the greatest token is the end."""
    folder = Path(shutil.copytree(pico("clip"), tmp_path / "clip"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    config |= {"text_config_dict": dict(config["text_config"]), "vision_config_dict": None}
    (folder / "config.json").write_text(json.dumps(config))
    source = open_model(folder, part="text")
    assert source.config.eos_token_id == 2 and compare(source)[DIFFERENCE] < 1e-6
    config["vision_config"]["hidden_size"] = 1 << 40
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="hidden_size is 1099511627776; allowed"):
        open_model(folder, part="vision")


def test_a_tokenizer_beside_an_image_model_is_no_fault(pico: Pico, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pico("clip_vision_model"), tmp_path / "vision"))
    shutil.copyfile(pico("clip") / "tokenizer.json", folder / "tokenizer.json")
    checks = check_tokenizer(folder, {"tokenizer": probe_record(folder)}, None)
    assert [check.name for check in checks] == ["tokenizer.probe"] and checks[0].passed


def test_what_has_no_such_part_is_refused(pico: Pico) -> None:
    with pytest.raises(ModelError, match="several towers.*vision or text"):
        open_model(pico("clip"))
    with pytest.raises(ModelError, match="is a model of the parts vision, text, and no torch module"):
        load(pico("clip"))
    with pytest.raises(ModelError, match="model.part: text: a model of model_type 'bert' has no parts"):
        open_model(pico("bert"), part="text")


def test_a_tensor_of_no_tower_is_refused(pico: Pico, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pico("siglip"), tmp_path / "siglip"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "adapter.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"adapter\.weight"):
        open_model(folder, part="text").weights.names()
