"""Files of sentence encoders: what they state is read, their files go along, what is not covered is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressor.errors import ModelError
from compressor.storage.companions import companion_files, copy_companions
from compressor.storage.sentence import POOLING_MODES, SentenceEncoder, read_sentence_encoder

WIDTH = 6
TANH = "torch.nn.modules.activation.Tanh"


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def sentence_folder(folder: Path, kinds: dict[str, str] | None = None, **pooling: Any) -> Path:
    """Write the files of an encoder with a pooling, and of a Dense and a Normalize unless told otherwise."""
    after = {"2_Dense": "Dense", "3_Normalize": "Normalize"} if kinds is None else kinds
    listed = {"": "Transformer", "1_Pooling": "Pooling", **after}
    types = {path: kind if "." in kind else f"sentence_transformers.models.{kind}" for path, kind in listed.items()}
    write(folder, "modules.json", [{"idx": 0, "name": p, "path": p, "type": t} for p, t in types.items()])
    write(folder, "1_Pooling/config.json", {"word_embedding_dimension": WIDTH, "pooling_mode": "mean", **pooling})
    if "Dense" in after.values():
        dense = {"in_features": WIDTH, "out_features": 4, "bias": True, "activation_function": TANH}
        write(folder, "2_Dense/config.json", dense)
        weights = {"linear.weight": np.ones((4, WIDTH), np.float32), "linear.bias": np.zeros(4, np.float32)}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    return folder


def test_without_files_the_mean_is_taken(tmp_path: Path) -> None:
    assert read_sentence_encoder(tmp_path) == SentenceEncoder()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_cls_token": False}, ("mean",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        *(({key: True}, (mode,)) for mode, key in POOLING_MODES.items()),
        *(({"pooling_mode": mode}, (mode,)) for mode in POOLING_MODES),
    ],
)
def test_pooling_modes(config: dict[str, Any], expected: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, "1_Pooling/config.json", config)
    assert read_sentence_encoder(tmp_path).modes == expected


def test_modules_settings_and_prompt(tmp_path: Path) -> None:
    sentence_folder(tmp_path, include_prompt=False)
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": True})
    prompts = {"prompts": {"q": "query: "}, "default_prompt_name": "q", "similarity_fn_name": "dot"}
    write(tmp_path, "config_sentence_transformers.json", prompts)
    found = read_sentence_encoder(tmp_path, width=WIDTH)
    assert [(module.kind, module.activation) for module in found.modules] == [
        ("Dense", "Tanh"),
        ("Normalize", "Identity"),
    ]
    assert (found.include_prompt, found.prompt, found.similarity) == (False, "query: ", "dot")
    assert (found.lower_case, found.max_length) == (True, 128)


def test_files_of_the_modules_go_along(tmp_path: Path) -> None:
    source, out = sentence_folder(tmp_path / "model"), tmp_path / "out"
    write(source, "tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.json", "tokenizer.9.json"]})
    write(source, "tokenizer.4.0.json", {})
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("x")
    (source / "2_Dense" / "notes.txt").write_text("x")
    copied = {path.relative_to(out).as_posix() for path in copy_companions(source, out)}
    named = {"2_Dense/config.json", "2_Dense/model.safetensors", "tokenizer.4.0.json"}
    templates = {"additional_chat_templates/tools.jinja"}
    assert copied == {"modules.json", "tokenizer_config.json", "1_Pooling/config.json", *named, *templates}
    assert read_sentence_encoder(out).modules[0].weights == out / "2_Dense" / "model.safetensors"


@pytest.mark.parametrize("path", ["../2_Dense", "/tmp", "a/../../b", "..\\x"])
def test_a_module_outside_of_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    write(tmp_path, "modules.json", [{"type": "sentence_transformers.models.Dense", "path": path}])
    with pytest.raises(ModelError, match="outside"):
        companion_files(tmp_path)


@pytest.mark.parametrize("content", ["", "3", '{"a": 1}', "[1]", '[{"type": 1, "path": ""}]', "[" * 100_000])
def test_modules_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(ModelError, match="modules.json"):
        companion_files(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "3", "\xff"])
def test_pooling_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match="1_Pooling/config.json cannot be read"):
        read_sentence_encoder(tmp_path)


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        ({"pooling_mode": "attention"}, "'attention' is not covered"),
        ({"pooling_mode": "mean_sqrt_len"}, "did you mean 'mean_sqrt_len_tokens'"),
        ({"pooling_mode": []}, r"\[\] is not covered"),
        ({"pooling_mode": [["cls"]]}, "is not covered"),
        ({"pooling_mode": None, "pooling_mode_new_tokens": True}, "'new_tokens' is not covered"),
    ],
)
def test_pooling_that_is_not_covered(pooling: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        read_sentence_encoder(sentence_folder(tmp_path, **pooling))


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"2_LSTM": "LSTM"}, r"module LSTM \(2_LSTM\) is not covered"),
        ({"2_Own": "custom.Layer"}, "module custom.Layer"),
        ({"2_Pooling": "Pooling"}, "module Pooling"),
        ({"": "Router"}, "the modules are Router, Pooling"),
        ({"2_LayerNorm": "LayerNorm"}, "2_LayerNorm/config.json is missing"),
    ],
)
def test_modules_that_are_not_covered(kinds: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        read_sentence_encoder(sentence_folder(tmp_path, kinds))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_function": "own.module.Act"}, "activation_function is 'own.module.Act'"),
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "not covered"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ({"in_features": WIDTH + 1}, "linear.weight"),
        ({"out_features": "4"}, "positive whole number"),
        ({"bias": False}, "linear.bias"),
        ({"use_residual": True}, "residual.weight"),
    ],
)
def test_a_dense_that_is_not_covered(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    sentence_folder(tmp_path)
    file = tmp_path / "2_Dense" / "config.json"
    write(tmp_path, "2_Dense/config.json", {**json.loads(file.read_text()), **changes})
    with pytest.raises(ModelError, match=said):
        read_sentence_encoder(tmp_path)


def test_a_dense_must_fit_what_comes_before_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes 6 values, and what comes before it gives 12"):
        read_sentence_encoder(sentence_folder(tmp_path, pooling_mode=["cls", "mean"]), width=WIDTH)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path) / "2_Dense"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"2_Dense/pytorch_model.bin is a pickle"):
        read_sentence_encoder(tmp_path)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"2_Dense/model.safetensors is missing"):
        read_sentence_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q", "prompts": {}}, "no such prompt"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "maxsim"),
    ],
)
def test_settings_that_are_not_covered(name: str, content: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(sentence_folder(tmp_path), name, content)
    with pytest.raises(ModelError, match=said):
        read_sentence_encoder(tmp_path)
