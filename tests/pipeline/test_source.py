"""The source gate in a run and in `verify --against`: when it is held, repeated and left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import ModelError
from compressor.machine.progress import NullProgress
from compressor.passes import methods
from compressor.pipeline import run, source
from compressor.pipeline.prepare import Prepared, prepare
from compressor.pipeline.source import checked_source, recorded, source_against, source_checks
from compressor.recipe import ModelSection, parse_recipe

Pico = Callable[..., Path]
OPTIONS = {name: method.Options for name, method in methods().items()}
FACTS = {
    "class": "X",
    "outputs": "a",
    "difference": 0.0,
    "values": {"single.logits": {"scale": 1.0, "projections": [1.0]}},
}


@pytest.fixture
def prepared(pico: Pico) -> Prepared:
    recipe = parse_recipe("version: 1\nname: x\npasses: []\n", source="r.yaml", options=OPTIONS)
    return prepare(recipe, str(pico("llama")))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the models for which the gate was held; it finds `FACTS`."""
    models: list[Any] = []

    def run_gate(model: Any, **options: Any) -> dict[str, Any]:
        models.append(model)
        return FACTS

    monkeypatch.setattr(source, "run_gate", run_gate)
    return models


def test_it_is_not_repeated_for_the_same_files(prepared: Prepared, held: list[Any], tmp_path: Path) -> None:
    for files in ({"model/a": "1"}, {"model/a": "1"}, {"model/a": "2"}):
        assert checked_source(prepared, files, tmp_path, NullProgress()) == FACTS
    assert len(held) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"basis": 3}'])
def test_a_damaged_record_of_it_means_again(prepared: Prepared, held: list[Any], tmp_path: Path, content: str) -> None:
    checked_source(prepared, {}, tmp_path, NullProgress())
    (tmp_path / "source.json").write_text(content)
    assert checked_source(prepared, {}, tmp_path, NullProgress()) == FACTS and len(held) == 2


def test_facts_without_a_difference_mean_again(prepared: Prepared, held: list[Any], tmp_path: Path) -> None:
    checked_source(prepared, {}, tmp_path, NullProgress())
    kept = json.loads((tmp_path / "source.json").read_text())
    (tmp_path / "source.json").write_text(json.dumps({**kept, "facts": {}}))
    assert checked_source(prepared, {}, tmp_path, NullProgress()) == FACTS and len(held) == 2


def test_what_was_compressed_before_is_left_out(prepared: Prepared, held: list[Any], tmp_path: Path) -> None:
    prepared.source.config.compression = {"version": 2}
    facts = checked_source(prepared, {}, tmp_path, NullProgress())
    assert (held, source_checks(facts)) == ([], []) and "compressed by this program" in recorded(facts)["skipped"]


def test_the_difference_is_reported_and_not_recorded() -> None:
    assert [check.value for check in source_checks(FACTS)] == [0.0]
    assert recorded(FACTS).keys() == {"class", "outputs", "values"}


@pytest.mark.parametrize("stranger", ["compression.json", "model.onnx"])
def test_another_artifact_is_no_source(pico: Pico, held: list[Any], tmp_path: Path, stranger: str) -> None:
    folder = shutil.copytree(pico("llama"), tmp_path / "m")
    (folder / stranger).write_text("{}")
    assert source_against(str(folder), ModelSection(), {}, NullProgress()) == [] == held


@pytest.mark.parametrize(
    ("manifest", "passed"), [({"source": FACTS}, True), ({"source": {**FACTS, "values": {}}}, True), ({}, False)]
)
def test_verification_against_the_model(pico: Pico, held: list[Any], manifest: dict[str, Any], passed: bool) -> None:
    checks = source_against(str(pico("llama")), ModelSection(), manifest, NullProgress())
    assert [(check.name, check.passed) for check in checks] == [("source.stock", True), ("source.recorded", passed)]


def test_a_run_ends_before_its_passes(pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(pico("llama"), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.0.mlp.up_proj.bias": torch.ones(100)}, folder / "model.safetensors")
    recipe = parse_recipe("version: 1\nname: x\npasses: [fp16: {}]\n", source="r.yaml", options=OPTIONS)
    with pytest.raises(ModelError, match="up_proj.bias") as caught:
        run(recipe, model=str(folder), out=tmp_path / "out", progress=NullProgress())
    assert caught.value.exit_code == 3 and {path.name for path in tmp_path.iterdir()} == {"model"}
