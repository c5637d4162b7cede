"""Our loader against stock transformers, for every covered family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compressor.architectures import FAMILIES, family_of
from compressor.architectures.tasks import TASKS
from compressor.errors import ModelError
from compressor.exporters.remote_code import add_remote_code
from compressor.model.blueprint import compression_section, read_blueprint
from compressor.model.config import config_for
from compressor.model.cost import count_flops
from compressor.model.folder import ModelFolder, load, open_model
from compressor.model.names import check_entries
from compressor.model.source import read_config
from compressor.storage.tensors import Plan, stored_entries, write_safetensors

TOWERS = ["clip_vision_model", "clip_text_model", "siglip_vision_model", "siglip_text_model"]
COVERED = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "opt",
    "bert",
    "vit",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    *TOWERS,
    "llava_vision",
]
Pico = Callable[..., Path]


def inputs_for(task: str, vocabulary: int = 320, image: int = 32, *, pixels: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    if pixels or task == "image-classification":
        return {"pixel_values": torch.randn(2, 3, image, image)}
    return {"input_ids": torch.randint(2, vocabulary, (2, 11))}


def inputs_of(model: ModelFolder) -> dict[str, torch.Tensor]:
    return inputs_for(model.task, pixels=model.family.inputs == "pixels")


def stock(folder: Path, task: str, **options: Any) -> Any:
    stated = json.loads((folder / "config.json").read_text())["architectures"][0]
    alone = stated == "SiglipTextModel" and not options  # AutoModel knows no class for it
    loader = stated if alone else TASKS[task].auto_class
    return getattr(transformers, loader).from_pretrained(folder, **options).eval()


def test_every_covered_family_has_a_pico_model() -> None:
    assert sorted(kind for family in FAMILIES for kind in family.model_types) == sorted(COVERED)


@pytest.mark.parametrize("family", COVERED)
def test_same_outputs_and_parameters_as_stock(pico: Pico, family: str) -> None:
    folder = open_model(pico(family))
    ours, theirs = folder.load(), stock(folder.path, folder.task)
    with torch.no_grad():
        inputs = inputs_of(folder)
        assert torch.equal(ours(**inputs)[0], theirs(**inputs)[0])
    assert folder.parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("family", COVERED)
def test_skeleton_holds_no_weights(pico: Pico, family: str) -> None:
    assert all(p.is_meta for p in open_model(pico(family)).skeleton().parameters())


@pytest.mark.parametrize("family", COVERED)
def test_flops_scale_with_the_matrices(pico: Pico, family: str) -> None:
    folder = open_model(pico(family))
    shapes = folder.shapes.with_widths([50] * len(folder.shapes.layers))
    narrow = folder.with_blueprint(folder.blueprint.with_shapes(shapes))
    matrices = len(folder.family.ffn.readers) + 1
    tokens = 16 + folder.family.leading_tokens if folder.family.inputs == "pixels" else 32
    removed = 2 * tokens * matrices * 48 * (folder.shapes.layers[0].intermediate_size - 50) * len(folder.shapes.layers)
    assert count_flops(folder, 32) - count_flops(narrow, 32) == removed


@pytest.mark.parametrize(
    ("family", "shortcuts"),
    [(f, s) for f in COVERED for s in (False, True) if not (s and f in ("bert", "siglip_vision_model"))],
)
def test_per_layer_shapes_reload_here_and_with_the_modelling_file(
    pico: Pico, family: str, shortcuts: bool, tmp_path: Path
) -> None:
    source = open_model(pico(family))
    shapes = source.shapes.with_widths([96, 92, 61])
    if shortcuts:
        widths = [(48, 40, 40), (40, 32, 40), (40, 40, 24)]
        layers = [replace(layer, residual=w) for layer, w in zip(shapes.layers, widths, strict=True)]
        shapes = replace(shapes, layers=tuple(layers), shortcuts=True)
    blueprint = replace(source.blueprint.with_shapes(shapes), tied=source.blueprint.tied and not shortcuts)
    model = source.with_blueprint(blueprint)
    write_random(model, tmp_path)
    config = config_for(source, blueprint)
    add_remote_code(model, config, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))

    reopened = open_model(tmp_path)
    assert reopened.blueprint == blueprint
    ours, theirs = reopened.load(), stock(tmp_path, source.task, trust_remote_code=True)
    with torch.no_grad():
        inputs = inputs_of(source)
        assert torch.equal(ours(**inputs)[0], theirs(**inputs)[0])


def write_random(model: Any, folder: Path) -> None:
    """Write random weights of the model's shapes."""
    torch.manual_seed(1)
    source = open_model(model.path).weights
    plans = []
    for name, parameter in model.skeleton().state_dict().items():
        if model.blueprint.tied and name == "lm_head.weight":
            continue
        stored = source.entry(name).stored if name in source else name
        value = torch.randn(parameter.shape) * 0.1
        plans.append(Plan(stored, "float32", tuple(parameter.shape), lambda value=value: value))
    write_safetensors(folder / "model.safetensors", plans)


def test_shapes_survive_config_json(pico: Pico) -> None:
    source = open_model(pico("llama"))
    blueprint = source.blueprint.with_shapes(source.shapes.with_widths([8, 16, 24]))
    config = source.config
    config.compression = compression_section(blueprint)
    assert read_blueprint(config, family_of(config)) == blueprint


def test_sections_of_version_1_still_load(pico: Pico, tmp_path: Path) -> None:
    """Written by hand as earlier releases wrote it: one stack, widths alone, modelling file's keys beside them."""
    source = open_model(pico("llama"))
    model = source.with_blueprint(source.blueprint.with_shapes(source.shapes.with_widths([8, 16, 24])))
    write_random(model, tmp_path)
    config = json.loads((source.path / "config.json").read_text())
    layers = [
        {"intermediate_size": width, "num_attention_heads": 6, "num_key_value_heads": 2, "residual": [48, 48, 48]}
        for width in (8, 16, 24)
    ]
    section = {"version": 1, "hidden_size": 48, "shortcuts": False, "layers": layers, "paths": {}, "head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps({**config, "compression": section}))
    reopened = open_model(tmp_path)
    assert reopened.blueprint == model.blueprint
    with torch.no_grad():
        assert torch.isfinite(reopened.load()(**inputs_of(source))[0]).all()
    (tmp_path / "config.json").write_text(json.dumps({**config, "compression": {**section, "version": 3}}))
    with pytest.raises(ModelError, match="not of version 1 or 2"):
        open_model(tmp_path)


def broken(pico: Pico, tmp_path: Path, family: str = "llama", **config: Any) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(pico(family), folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    return folder


def test_shape_that_config_contradicts(pico: Pico, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="do not have the shape that config.json states"):
        open_model(broken(pico, tmp_path, intermediate_size=64)).weights.names()


def test_missing_tensor(pico: Pico, tmp_path: Path) -> None:
    folder = broken(pico, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="1 tensors are missing.*layers.1.mlp.up_proj"):
        open_model(folder).weights.names()


def test_integers_where_weights_belong(pico: Pico, tmp_path: Path) -> None:
    folder = broken(pico, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(torch.int64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 weights hold integers: .*layers.1.mlp.up_proj.weight is int64; allowed:"):
        open_model(folder).weights.names()


def test_buffers_that_hold_integers_are_no_weights(pico: Pico) -> None:
    folder = open_model(pico("bert"))
    entries = stored_entries(folder.path)
    entries["steps"] = replace(next(iter(entries.values())), dtype="int64", shape=(1, 3))
    model = folder.skeleton()
    model.register_buffer("steps", torch.zeros(1, 3))
    with pytest.raises(ModelError, match="steps is int64"):
        check_entries(model, entries, tied=False)
    model.register_buffer("steps", torch.arange(3)[None])
    check_entries(model, entries, tied=False)


def without_pooler(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors")
    return folder


def test_encoder_without_a_pooler_is_stock_without_one(pico: Pico, tmp_path: Path) -> None:
    folder = open_model(without_pooler(broken(pico, tmp_path, "bert")))
    ours = folder.load()
    theirs = stock(folder.path, folder.task, add_pooling_layer=False)
    with torch.no_grad():
        assert torch.equal(ours(**inputs_of(folder))[0], theirs(**inputs_of(folder))[0])
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}
    assert folder.parameters == open_model(pico("bert")).parameters


def test_classifier_needs_its_pooler(pico: Pico, tmp_path: Path) -> None:
    folder = without_pooler(broken(pico, tmp_path, "bert"))
    with pytest.raises(ModelError, match=r"missing from the checkpoint: .*pooler.dense.weight"):
        open_model(folder, task="text-classification").weights.names()


def test_nan_in_weights(pico: Pico, tmp_path: Path) -> None:
    folder = broken(pico, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="layers.1.mlp.up_proj.weight holds NaN"):
        open_model(folder).load()


@pytest.mark.parametrize("name", ["gpt2", "nosuchtype"])
def test_uncovered_family_lists_what_is_covered(pico: Pico, tmp_path: Path, name: str) -> None:
    covered = ", ".join(sorted([*COVERED, "clip", "llava", "siglip"]))
    with pytest.raises(ModelError, match=f"'{name}'.*covered are: {covered}\n") as caught:
        open_model(broken(pico, tmp_path, model_type=name))
    assert "compressor/architectures" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0; allowed: whole numbers from 1"),
        ("llama", {"num_hidden_layers": -1}, "num_hidden_layers is -1; allowed: whole numbers from 1"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0; allowed"),
        ("opt", {"ffn_dim": -4}, "ffn_dim is -4; allowed"),
        ("llama", {"hidden_act": "nosuch"}, "hidden_act is 'nosuch'; allowed: .*gelu.*silu"),
        ("bert", {"hidden_act": "gleu"}, r"hidden_act is 'gleu' \(did you mean 'gelu'\?\); allowed: .*relu"),
        ("opt", {"activation_function": "nosuch"}, "activation_function is 'nosuch'; allowed: .*relu"),
        ("bert", {"num_attention_heads": 5}, "hidden_size is 48, which num_attention_heads, 5, does not divide"),
        ("llama", {"pad_token_id": 9999}, "pad_token_id is 9999; vocab_size is 320"),
        ("vit", {"patch_size": 0}, "patch_size is 0; allowed"),
        ("llama", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; allowed"),
        ("llama", {"num_hidden_layers": 1e30}, "num_hidden_layers is .*; allowed"),
        ("llama", {"num_attention_heads": 1}, "num_attention_heads is 1, which num_key_value_heads, 2, does not"),
        ("llama", {"hidden_size": "x" * 10000}, "hidden_size is .{1,80}; allowed"),
        ("llama", {"num_labels": 10**9}, "num_labels is 1000000000; allowed"),
        ("vit", {"image_size": [32, 10**9]}, "image_size is .*; allowed"),
        ("llama", {"rms_norm_eps": "x" * 10000}, ".{1,500}$"),
        ("llama", {"architectures": 3}, "architectures is 3; allowed: a list"),
    ],
)
def test_config_that_makes_no_model(
    pico: Pico, tmp_path: Path, family: str, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=f"config.json.* {reason}") as caught:
        open_model(broken(pico, tmp_path, family, **config)).skeleton()
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1}', '{"model_type": 3}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_bad_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError):
        family_of(read_config(tmp_path))


def test_remote_code_is_not_run(pico: Pico, tmp_path: Path) -> None:
    folder = broken(pico, tmp_path, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    assert open_model(folder).load() is not None


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "nowhere"])
def test_missing_model(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        open_model(name)


def test_wrong_task(pico: Pico) -> None:
    with pytest.raises(ModelError, match="model.task"):
        open_model(pico("llama"), task="image-classification")


@pytest.mark.real
@pytest.mark.parametrize("name", ["llama-wt2", "stories260K-llama", "vit-tiny-patch16-224-imagenet1k"])
def test_real_models_like_stock(data_root: Path, name: str) -> None:
    folder = open_model(data_root / "models" / name)
    ours, theirs = folder.load(), stock(folder.path, folder.task)
    inputs = inputs_for(folder.task, vocabulary=500, image=224)
    with torch.no_grad():
        assert torch.equal(ours(**inputs)[0], theirs(**inputs)[0])


@pytest.mark.parametrize("graph", ["model.onnx", "model.ort"])
def test_a_graph_is_no_torch_module(graph: str, pico: Pico, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((pico("llama") / "config.json").read_bytes())
    (tmp_path / graph).write_bytes(b"")
    with pytest.raises(ModelError, match=f"holds {graph}, a graph for ONNX Runtime") as caught:
        load(tmp_path)
    assert "onnxruntime.InferenceSession" in str(caught.value.hint)
