"""Files of a model folder that are not its own, and JSON that is none: refused by name before a library sees them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import CompressorError, ModelError
from compressor.measure.opening import open_runner
from compressor.model.source import resolve_path
from compressor.storage.companions import copy_companions
from compressor.storage.files import check_folder, foreign_files, own_file
from compressor.storage.json_files import read_json
from compressor.storage.tensors import read_header

Pico = Callable[..., Path]
SECRET = "a key that belongs to nobody else"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config, beside which lies a file that is none of its."""
    (tmp_path / "model" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(SECRET))
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("chat_template.jinja", "../secret.txt"),
        ("vocab.txt", "{outside}/secret.txt"),
        ("model.onnx", "../secret.txt"),
        ("model.safetensors", "../secret.txt"),
        ("generation_config.json", "../../nowhere"),
        ("1_Pooling/config.json", "../../elsewhere/config.json"),
        ("2_Dense", "../elsewhere"),
        ("merges.txt", "merges.txt"),
    ],
)
def test_a_link_out_of_the_folder_is_refused_and_never_copied(folder: Path, name: str, target: str) -> None:
    (folder / name).symlink_to(target.format(outside=folder.parent))
    assert list(foreign_files(folder)) == [name]
    with pytest.raises(ModelError, match=f"model: {name} is a link") as caught:
        check_folder(folder)
    assert caught.value.exit_code == 3
    with pytest.raises(ModelError, match=name):
        resolve_path(str(folder))
    copied = folder.parent / "copied"
    copied.mkdir()
    try:
        copy_companions(folder, copied)
    except ModelError as error:
        assert name in error.message
    assert SECRET not in "".join(path.read_text() for path in copied.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "report.json", "model.onnx"])
def test_a_pipe_is_refused_and_keeps_nobody_waiting(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=f"{name} is a named pipe"):
        check_folder(folder)
    with pytest.raises(ModelError, match=f"{name} is a named pipe"):
        own_file(folder, name)
    with pytest.raises(ModelError, match=f"{name} cannot be read: it is a named pipe"):
        read_json(folder / name)


def test_links_inside_the_folder_and_those_of_a_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "merges.txt").symlink_to("config.json")
    (folder / "notes").symlink_to("../secret.txt")  # nobody opens it
    check_folder(folder)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    (snapshot / "1_Pooling").mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "ff").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/ff")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/ff")
    (tmp_path / "alias").symlink_to(snapshot)
    for place in (snapshot, tmp_path / "alias"):
        check_folder(place)
        assert own_file(place, "1_Pooling/config.json") is not None
    (snapshot / "vocab.txt").symlink_to("../../refs")
    (tmp_path / "models--a--b" / "refs").write_text(SECRET)
    with pytest.raises(ModelError, match="vocab.txt is a link to outside"):
        check_folder(snapshot)


@pytest.mark.parametrize("file", ["../other/x.safetensors", "/x.safetensors", "..", "a/x.safetensors", "a\\x", 3])
def test_an_index_that_leads_out_of_its_folder(pico: Pico, tmp_path: Path, file: object) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pico("llama"), folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ModelError, match=r"index.json (points outside the model folder|cannot be read)"):
        open_runner(folder)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"a":' * 900 + "1" + "}" * 900,
        '{"a": ' + "[" * 900 + "]" * 900 + "}",
        '{"a": ' + "9" * 5000 + "}",
        "[]",
        "3",
        "null",
        "{",
        "",
        '{"a": "\\ud800"}',
        b"\xff\xfe{}",
    ],
    ids=range(11),
)
def test_json_that_is_no_object_of_sane_depth(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "x.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=r"^x.json (cannot be read|holds a)") as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value)) < 400


def test_json_as_models_have_it(tmp_path: Path) -> None:
    value = {"model_max_length": 10**30, "x": [[[1.5, None, True, "é"]]], "y": float("inf")}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "x.json") == value
    with pytest.raises(ModelError, match=f"y.json is missing from {tmp_path.name}"):
        read_json(tmp_path / "y.json")


def header(content: str, data: int = 4) -> bytes:
    return len(content).to_bytes(8, "little") + content.encode() + bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        "[]",
        '{"a": 3}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        '{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [true, 4]}}',
    ],
    ids=range(9),
)
def test_damaged_header_of_a_safetensors_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(header(content))
    with pytest.raises(ModelError, match="x.safetensors"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"]
)
def test_deep_json_in_any_file_of_a_model(pico: Pico, tmp_path: Path, name: str) -> None:
    from compressor.data.preprocessors import load_processor, load_tokenizer

    image = name == "preprocessor_config.json"
    shutil.copytree(pico("vit" if image else "llama"), tmp_path / "model")
    (tmp_path / "model" / name).write_text(DEEP)
    with pytest.raises(CompressorError, match=f"{name} cannot be read: .*deep") as caught:
        if name == "config.json":
            open_runner(tmp_path / "model")
        elif image:
            load_processor(tmp_path / "model")
        else:
            load_tokenizer(tmp_path / "model")
    assert caught.value.exit_code == 3
