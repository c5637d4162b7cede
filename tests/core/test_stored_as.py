"""Checkpoints that are stored in unusual ways: read as stock transformers reads them, or refused with the cause."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compressor.architectures.tasks import TASKS
from compressor.errors import ModelError
from compressor.model import foreign
from compressor.model.folder import open_model
from compressor.storage.tensors import INDEX, read_header, same_values, stored_entries

Pico = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def model(pico: Pico, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a pico-model, with config keys set, or removed where None, and tensors changed."""

    def make(
        family: str = "llama",
        change: Callable[[Tensors], Tensors] = dict,
        options: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        folder = Path(shutil.copytree(pico(family, **(options or {})), tmp_path / "model"))
        content = {**json.loads((folder / "config.json").read_text()), **config}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        write(change(load_file(folder / "model.safetensors")), folder)
        return folder

    return make


def write(tensors: Tensors, folder: Path, name: str = "model.safetensors") -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})


def same_as_stock(folder: Path, task: str = "auto") -> bool:
    model = open_model(folder, task=task)
    theirs = getattr(transformers, TASKS[model.task].auto_class).from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return torch.equal(model.load()(ids)[0], theirs(ids)[0])


def renamed(function: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {function(name): tensor for name, tensor in tensors.items()}


def plus(**added: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{name: torch.as_tensor(value) for name, value in added.items()}}


def refused(folder: Path, task: str = "auto") -> ModelError:
    with pytest.raises(ModelError) as caught:
        open_model(folder, task=task).weights.names()
    return caught.value


# --- the head and the embedding


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_a_head_that_differs_under_a_tied_flag_is_kept(model: Callable[..., Path], family: str) -> None:
    folder = model(family, lambda t: {**t, "lm_head.weight": torch.randn(320, 48) * 0.2})
    assert not open_model(folder).blueprint.tied
    assert same_as_stock(folder)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_head_that_is_stored_twice_stays_tied(model: Callable[..., Path], family: str) -> None:
    folder = model(
        family, lambda t: {**t, "lm_head.weight": next(v for k, v in t.items() if "embed_tokens" in k).clone()}
    )
    found = open_model(folder)
    assert found.blueprint.tied and "lm_head.weight" not in found.weights
    assert same_as_stock(folder)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_tied_matrix_may_be_stored_as_the_head_alone(model: Callable[..., Path], family: str) -> None:
    folder = model(family, renamed(lambda name: "lm_head.weight" if "embed_tokens" in name else name))
    found = open_model(folder)
    embedding = next(name for name in found.weights.names() if "embed_tokens" in name)
    assert found.weights.entry(embedding).stored == embedding, "artifacts store it as others do"
    assert same_as_stock(folder)


def test_a_missing_head_of_an_untied_model(model: Callable[..., Path]) -> None:
    folder = model("qwen2", lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})
    assert "missing from the checkpoint: lm_head.weight" in refused(folder).message


@pytest.mark.parametrize(("value", "same"), [(0.0, True), (1.0, False)])
def test_matrices_are_compared_to_the_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, same: bool
) -> None:
    monkeypatch.setattr("compressor.storage.tensors._PIECE", 64)
    one = torch.randn(33, 7).half()
    other = one.float()
    other[-1, -1] += value
    write({"one": one, "other": other, "wide": torch.zeros(7, 33)}, tmp_path)
    entries = stored_entries(tmp_path)
    assert same_values(entries["one"], entries["other"]) is same
    assert not same_values(entries["one"], entries["wide"])


# --- tensors that no module takes


@pytest.mark.parametrize(
    ("family", "added"),
    [
        ("llama", f"{Q}.bias"),
        ("llama", "model.layers.3.mlp.up_proj.weight"),
        ("llama", "score.weight"),
        ("qwen3", "v_head.summary.weight"),
        ("opt", "model.decoder.project_in.weight"),
        ("bert", "classifier.weight"),
        ("bert", "cls.predictions.bias"),
        ("vit", "vit.layers.0.layer_scale1.lambda1"),
    ],
)
def test_a_trained_tensor_that_no_module_takes_is_named(model: Callable[..., Path], family: str, added: str) -> None:
    error = refused(model(family, plus(**{added: torch.ones(4)})))
    assert "1 tensors are taken by no module" in error.message and added in error.message
    assert "model.safetensors" in error.message and "config.json" in str(error.hint)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("bert", "embeddings.position_ids"),
        ("bert", "bert.embeddings.position_ids"),
    ],
)
def test_constants_of_older_releases_are_left_out(model: Callable[..., Path], family: str, name: str) -> None:
    folder = model(family, plus(**{name: torch.arange(8.0)}))
    assert same_as_stock(folder)


def test_one_tensor_under_two_names(model: Callable[..., Path]) -> None:
    error = refused(model("llama", lambda t: {**t, "norm.weight": t["model.norm.weight"] + 1}))
    assert "holds model.norm.weight twice, as" in error.message and "norm.weight" in error.message


# --- names and codes of other tools


@pytest.mark.parametrize(
    ("family", "change", "part"),
    [
        ("llama", lambda name: f"_orig_mod.{name}", "'_orig_mod.', which torch.compile"),
        ("bert", lambda name: f"module.{name}", "'module.', which DataParallel"),
        ("vit", lambda name: f"module._orig_mod.{name}", "'_orig_mod.'"),
        ("vit", lambda name: f"_orig_mod.{name.removeprefix('vit.')}", "'_orig_mod.'"),
        ("opt", lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."), "FSDP"),
        ("bert", lambda name: f"0.auto_model.{name}", "begin with '0.auto_model.'"),
        ("llama", lambda name: f"policy.{name}", "begin with 'policy.'"),
    ],
)
def test_names_that_wrappers_changed(
    model: Callable[..., Path], family: str, change: Callable[[str], str], part: str
) -> None:
    error = refused(model(family, renamed(change)))
    assert part in error.message and "rename the tensors" in str(error.hint)


@pytest.mark.parametrize(
    ("leaves", "kind"),
    [
        (("qweight", "qzeros", "scales", "g_idx"), "GPTQ"),
        (("qweight", "qzeros", "scales"), "AWQ or GPTQ"),
        (("weight", "weight.absmax", "weight.quant_map"), "bitsandbytes"),
        (("weight", "SCB"), "bitsandbytes"),
        (("weight_packed", "weight_scale", "weight_shape"), "compressed-tensors"),
        (("weight", "weight_scale_inv"), "FP8"),
    ],
)
def test_codes_that_config_does_not_announce(model: Callable[..., Path], leaves: tuple[str, ...], kind: str) -> None:
    def change(tensors: Tensors) -> Tensors:
        del tensors[f"{Q}.weight"]
        return {**tensors, **{f"{Q}.{leaf}": torch.ones(4, 4, dtype=torch.int32) for leaf in leaves}}

    error = refused(model("llama", change))
    assert f"quantized ({kind}" in error.message and Q in error.message


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ("quantization_config", {"quant_method": "awq"}, "AWQ"),
        ("quantization_config", {"load_in_4bit": True}, "bitsandbytes"),
        ("quantization_config", {"quant_method": "compressed-tensors", "config_groups": 3}, "compressed-tensors"),
        ("quantization_config", {"quant_method": "fp8"}, "FP8"),
        ("quantization_config", 3, "quantization_config"),
        ("quantization_config", [], "quantization_config"),
        ("compression_config", {"quant_method": "sparse"}, "sparse"),
    ],
)
def test_codes_that_config_announces(model: Callable[..., Path], key: str, value: Any, kind: str) -> None:
    error = refused(model(**{key: value}))
    assert kind in error.message and "quantized" in error.message and "made from" in str(error.hint)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("content", ['{"peft_type": "LORA", "base_model_name_or_path": "org/base"}', "[]", "{"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_folder(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, content: str, whole: bool, installed: bool
) -> None:
    folder = model()
    (folder / "adapter_config.json").write_text(content)
    if not whole:
        (folder / "config.json").unlink()
    monkeypatch.setattr(foreign.importlib.util, "find_spec", lambda name: object() if installed else None)
    error = refused(folder)
    assert "holds a LoRA adapter (adapter_config.json) for " in error.message
    assert ("org/base" in error.message) == ("org/base" in content)
    assert "merge_and_unload" in str(error.hint) and ("pip install peft" in str(error.hint)) is not installed


def test_an_adapter_that_was_not_merged(model: Callable[..., Path]) -> None:
    def change(tensors: Tensors) -> Tensors:
        base = tensors.pop(f"{Q}.weight")
        return {**tensors, f"{Q}.base_layer.weight": base, f"{Q}.lora_A.weight": torch.ones(2, 48)}

    assert "LoRA adapter that is not merged" in refused(model("llama", change)).message


def test_norms_without_weights(model: Callable[..., Path]) -> None:
    def change(tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if "layer_norm" not in name}

    error = refused(model("opt", change, layer_norm_elementwise_affine=False))
    assert "layer_norm_elementwise_affine is false: the norms of the model have no weights" in error.message


# --- classes


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "LlamaForSequenceClassification"),
        ("llama", "LlamaModel"),
        ("llama", "MistralForCausalLM"),
        ("llama", "OwnLlamaForCausalLM"),
        ("opt", "OPTForQuestionAnswering"),
        ("bert", "BertForMaskedLM"),
        ("bert", "BertForTokenClassification"),
        ("bert", "BertLMHeadModel"),
        ("vit", "ViTModel"),
        ("vit", "ViTForMaskedImageModeling"),
        ("llama", ""),
    ],
)
def test_a_class_without_a_task_is_refused(model: Callable[..., Path], family: str, name: str) -> None:
    with pytest.raises(
        ModelError, match=rf"architectures names '{name}', for which there is no task here; covered .*tion\)"
    ):
        open_model(model(family, architectures=[name]))


@pytest.mark.parametrize("stated", [None, []])
def test_without_a_class_the_first_task_is_meant(model: Callable[..., Path], stated: Any) -> None:
    assert open_model(model(architectures=stated)).task == "text-generation"


def test_a_body_that_is_asked_for_leaves_the_heads_out(pico: Pico) -> None:
    folder = pico("bert", architecture="BertForMaskedLM")
    with pytest.raises(ModelError, match="BertForMaskedLM") as caught:
        open_model(folder)
    assert "model.task: feature-extraction" in str(caught.value.hint)
    assert not any(name.startswith("cls.") for name in open_model(folder, task="feature-extraction").weights.names())
    assert same_as_stock(folder, "feature-extraction")


# --- files


def test_a_single_file_counts_before_an_index(model: Callable[..., Path]) -> None:
    folder = model()
    old = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    write(old, folder, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}))
    assert {entry.file.name for entry in stored_entries(folder).values()} == {"model.safetensors"}
    assert same_as_stock(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path, "1.safetensors")
    write({"b": torch.zeros(2)}, tmp_path, "2.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    with pytest.raises(ModelError, match=r"b is in two shards, 1.safetensors and 2.safetensors"):
        stored_entries(tmp_path)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model.Q4_K_M.gguf", "pytorch_model.bin", "tf_model.h5"])
def test_weights_under_other_names_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=f"found {name}"):
        stored_entries(tmp_path)


def test_a_file_that_config_names_itself(model: Callable[..., Path]) -> None:
    assert (
        "transformers_weights names 'other.safetensors'"
        in refused(model(transformers_weights="other.safetensors")).message
    )


A, B = [{"dtype": "F32", "shape": [2], "data_offsets": list(place)} for place in ((0, 8), (8, 16))]


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ({"a": A, "b": A}, 16, "b overlaps a"),
        ({"a": A, "b": A}, 8, "b overlaps a"),
        ({"a": A, "b": {**B, "data_offsets": [4, 12]}}, 16, "b overlaps a"),
        ({"b": B}, 16, "b leaves a hole behind the header"),
        ({"a": A, "b": {**B, "data_offsets": [12, 20]}}, 20, "b leaves a hole behind a"),
        ({"a": A}, 12, "the header promises"),
        ('{"a": %s, "a": %s}', 16, "names 'a' twice"),
        ({"a": {**A, "data_offsets": [0]}}, 8, "unpack"),
        ({"a": {**A, "shape": [-1, -2]}}, 8, "whole numbers"),
        ({"a": {**A, "shape": [True, 2]}}, 8, "whole numbers"),
        ({"a": {**A, "data_offsets": [0.0, 8.0]}}, 8, "whole numbers"),
        ('{"a": ' + "[" * 100_000, 8, "nested deeper"),
    ],
)
def test_a_header_that_does_not_cover_its_file(tmp_path: Path, header: Any, size: int, reason: str) -> None:
    if isinstance(header, str) and "%s" in header:
        header = header % (json.dumps(A), json.dumps(B))
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    with pytest.raises(ModelError, match=f"x.safetensors is not a whole safetensors file: .*{reason}"):
        read_header(tmp_path / "x.safetensors")


def test_tensors_without_elements_cover_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.empty(0, 3), "c": torch.ones(3)}, tmp_path / "x.safetensors")
    assert set(read_header(tmp_path / "x.safetensors")) == {"a", "b", "c"}
