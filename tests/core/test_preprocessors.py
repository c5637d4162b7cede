"""Tokenizers and image processors of somebody else: no code of theirs is run, and no damage of theirs crashes us."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.data.preprocessors import library_calls, load_processor, load_tokenizer
from compressor.errors import CompressorError, DataError, ModelError, ResourceError
from compressor.verification.tokens import probe_record

Pico = Callable[..., Path]
PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[none]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}


def changed(source: Path, folder: Path, file: str, **keys: Any) -> Path:
    """Copy a model folder and set keys of one of its JSON files."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **keys}))
    return folder


@pytest.mark.parametrize(
    "keys",
    [
        {"padding": {"strategy": {"Fixed": 10**12}, **PADDING}},  # ends the process
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # panics when it is opened
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},  # panics when it encodes
        {"post_processor": TEMPLATE},
        {"truncation": {"max_length": 5, "stride": 9, "strategy": "LongestFirst", "direction": "Right"}},
        {"model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", -1.0]]}},
        {"model": 3},
    ],
    ids=["padding", "normalizer", "pre_tokenizer", "post_processor", "truncation", "unigram", "model"],
)
def test_a_damaged_tokenizer_is_one_line(pico: Pico, tmp_path: Path, keys: dict[str, Any]) -> None:
    folder = changed(pico("llama"), tmp_path / "model", "tokenizer.json", **keys)
    with pytest.raises(DataError, match=r"^here: the tokenizer of model cannot be used: tokenizer.json: ") as caught:
        load_tokenizer(folder, "here")
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message and len(caught.value.message) < 500
    with pytest.raises(ModelError, match="tokenizer.json"):
        probe_record(folder)


class PanicException(BaseException):
    """Named as the one of Rust's bindings."""


PanicException.__module__ = "pyo3_runtime"


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (PanicException("index out of bounds"), DataError),
        (Exception("WordPiece error"), DataError),
        (RecursionError(), DataError),
        (MemoryError(), ResourceError),
        (ModelError("known"), ModelError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
)
def test_what_a_library_raises(raised: BaseException, becomes: type[BaseException]) -> None:
    with pytest.raises(becomes) as caught, library_calls("x.json"):
        raise raised
    if becomes is DataError:
        assert "x.json cannot be used: " in str(caught.value)


@pytest.mark.parametrize("kind", ["tokenizer", "processor"])
def test_code_of_a_model_folder_is_neither_run_nor_asked_for(
    pico: Pico, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "tokenizer":
        keys = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
        folder = changed(pico("llama"), tmp_path / "model", "tokenizer_config.json", **keys)
    else:
        keys = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
        folder = changed(pico("vit"), tmp_path / "model", "preprocessor_config.json", **keys)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(CompressorError, match="asks for code of its own") as caught:
        load_tokenizer(folder) if kind == "tokenizer" else load_processor(folder)
    assert caught.value.exit_code == 3 and "model.trust_remote_code: true" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert sys.stdin.readline() == "y\n"


def test_a_processor_does_not_blow_images_up(pico: Pico, tmp_path: Path) -> None:
    keys = {"size": {"height": 10**5, "width": 10**5}}
    folder = changed(pico("vit"), tmp_path / "model", "preprocessor_config.json", **keys)
    with pytest.raises(DataError, match=r"preprocessor_config.json: size is .*; allowed: sides of 1 to 4096 pixels"):
        load_processor(folder)
