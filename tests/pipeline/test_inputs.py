"""What a run notes of its inputs, and which of them make a finished pass unfit for resuming."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.pipeline.inputs import dense_basis, input_hashes, pass_fingerprint
from compressor.pipeline.prepare import prepare
from compressor.storage.tensors import sha256_of
from tests.core.test_calibration import images
from tests.pipeline.conftest import Maker

Pico = Callable[..., Path]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with texts `a/t.txt`, `b/t.txt` and `u.txt`."""
    for name in ("a/t.txt", "b/t.txt", "u.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"words of {name} " * 200)
    return tmp_path


@pytest.fixture
def noted(pico: Pico, make_recipe: Maker, texts: Path) -> Callable[..., tuple[dict[str, str], str, str]]:
    """Return hashes, fingerprint of the last pass and basis of the dense export for data in `texts` and sections."""

    def note(calibration: str, evaluation: str, **sections: Any) -> tuple[dict[str, str], str, str]:
        model, options = sections.pop("path", pico("llama")), sections.pop("options", {})
        given = {
            "calibration": {"data": str(texts / calibration), "samples": 4, "length": 32, **options},
            "evaluation": {"data": str(texts / evaluation), "samples": 4, "length": 32},
        }
        prepared = prepare(make_recipe(**{**given, **sections}), str(model))
        hashes = input_hashes(prepared)
        last = len(prepared.passes) - 1
        return hashes, pass_fingerprint(prepared, hashes, last, "cpu"), dense_basis(prepared, hashes)

    return note


def test_every_file_is_noted_under_its_use(noted: Callable[..., Any], texts: Path, pico: Pico) -> None:
    hashes, _, _ = noted("a/t.txt", "b/t.txt")
    data = {name: value for name, value in hashes.items() if not name.startswith("model/")}
    assert data == {
        "calibration/t.txt": sha256_of(texts / "a/t.txt"),
        "evaluation/t.txt": sha256_of(texts / "b/t.txt"),
    }
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert hashes[f"model/{file}"] == sha256_of(pico("llama") / file)


def test_a_pass_depends_on_the_calibration_data_and_not_on_the_evaluation_data(noted: Callable[..., Any]) -> None:
    _, first, dense = noted("a/t.txt", "u.txt")
    assert noted("a/t.txt", "b/t.txt")[1:] == (first, dense)
    for swapped in (("u.txt", "a/t.txt"), ("b/t.txt", "u.txt")):
        _, other, same = noted(*swapped)
        assert other != first and same == dense
    assert noted("a/t.txt", "b/t.txt")[1] != noted("b/t.txt", "a/t.txt")[1], "of the same name"


def test_a_pass_depends_on_what_is_done_to_the_data_and_the_model(
    noted: Callable[..., Any], pico: Pico, tmp_path: Path
) -> None:
    seen = {noted("a/t.txt", "u.txt")[1]}
    changes: list[dict[str, Any]] = [
        {"options": {"samples": 5}},
        {"options": {"length": 31}},
        {"options": {"seed": 1}},
        {"model": {"dtype": "float16"}},
        {"passes": [{"width": {"sparsity": 0.2}}]},
        {"passes": [{"width": {"sparsity": 0.3}}, {"gptq": {}}]},
        {"passes": [{"slicegpt": {"reduction": 0.2}}, {"gptq": {}}]},
        {"export": {"format": "safetensors"}},
    ]
    for change in changes:
        found = noted("a/t.txt", "u.txt", **change)[1]
        assert found not in seen, change
        seen.add(found)
    for file in ("config.json", "tokenizer.json"):
        copy = tmp_path / file
        shutil.copytree(pico("llama"), copy)
        (copy / file).write_text((copy / file).read_text() + "\n")
        assert noted("a/t.txt", "u.txt", path=copy)[1] not in seen, file


def test_the_task_is_part_of_it(make_recipe: Maker, pico: Pico, corpus: Path) -> None:
    prepared = prepare(make_recipe(verify={}), str(pico("bert")))
    other = replace(prepared, source=replace(prepared.source, task="text-classification"))
    assert pass_fingerprint(prepared, {}, 0, "cpu") != pass_fingerprint(other, {}, 0, "cpu")
    assert dense_basis(prepared, {}) != dense_basis(other, {})


def test_passes_without_data_depend_on_none(noted: Callable[..., Any]) -> None:
    prints = {noted(name, "u.txt", passes=[{"rtn": {}}])[1] for name in ("a/t.txt", "b/t.txt")}
    assert len(prints) == 1


def test_images_are_known_by_their_contents(noted: Callable[..., Any], pico: Pico, tmp_path: Path) -> None:
    folder = images(tmp_path / "pictures", 4)
    labels = folder / "labels.csv"
    name = labels.read_text().splitlines()[-1].partition(",")[0]
    (folder / "nested").mkdir()
    changed = (folder / name).rename(folder / "nested" / name)
    labels.write_text(labels.read_text().replace(name, f"nested/{name}"))

    def found() -> tuple[str, str]:
        hashes, fingerprint, _ = noted("pictures", "pictures", path=pico("vit"), verify={})
        assert hashes["calibration/pictures/"] == hashes["evaluation/pictures/"]
        return hashes["calibration/pictures/"], fingerprint

    before = found()
    (folder / "stranger.png").write_bytes(b"not used")
    assert found() == before
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    after = found()
    assert after[0] != before[0] and after[1] != before[1], "of the same name and size"
    labels.write_text(labels.read_text().replace(",1", ",0"))
    assert found() != after
