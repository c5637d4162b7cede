"""`export.target`: the processor that will run the artifact decides how it is made, not the one that makes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.machine.processor import TARGETS, cpu, target_of
from compressor.measure.onnx_runner import imitation
from compressor.passes.apply import Setting, apply_pass
from compressor.pipeline.artifact import export_model
from compressor.pipeline.inputs import pass_fingerprint
from compressor.pipeline.plan import artifact_dtype, plan
from compressor.pipeline.prepare import prepare
from compressor.recipe import Recipe
from compressor.storage.processor import TARGET, target_of_folder
from compressor.storage.tensors import sha256_of
from tests.core.toy import toy_batches
from tests.pipeline.conftest import Maker

Pico = Callable[..., Path]
MACHINES: dict[str, dict[str, bool] | None] = {
    "x86-avx2": {"avx2": True, "avx512": True, "avx512_vnni": False, "avx_vnni": False, "amx_int8": False},
    "x86-vnni": {"avx2": True, "avx512": True, "avx512_vnni": True, "avx_vnni": False, "amx_int8": True},
    "arm64": {"neon": True, "dotprod": True, "i8mm": False, "bf16": False},
}


def on(machine: str, patch: pytest.MonkeyPatch) -> None:
    """Let this machine have another processor."""
    patch.setattr("compressor.machine.processor.cpu", lambda: {"features": MACHINES[machine]})
    patch.setattr("compressor.passes.base.cpu", lambda: {"features": MACHINES[machine]})


@pytest.mark.parametrize(("name", "features"), MACHINES.items())
def test_names_of_processors(name: str, features: dict[str, bool]) -> None:
    assert target_of(features) == target_of(TARGETS[name]) == name


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", "x86-avx2"), ("AMD64", "x86-avx2"), ("aarch64", "arm64"), ("arm64", "arm64"), ("riscv64", "x86-avx2")],
)
def test_a_machine_that_says_nothing_of_itself_gets_what_is_right_everywhere(
    machine: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert target_of(cpu(tmp_path / "none")["features"]) == expected


def recipe(make: Maker, target: str) -> Recipe:
    export = {"format": "onnx", "target": target}
    return make(passes=[{"int8-dynamic": {}}], export=export, evaluation=None, verify={"speedup": {"min": 1.0}})


def test_auto_is_this_machine_and_a_name_is_that_one(
    make_recipe: Maker, pico: Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prints = str(pico("llama")), set()
    for machine in MACHINES:
        on(machine, monkeypatch)
        found = prepare(recipe(make_recipe, "auto"), model)
        assert found.target.processor == machine == plan(found.recipe, model=model)["export"]["target"]
        assert prepare(recipe(make_recipe, "x86-avx2"), model).target.processor == "x86-avx2"
        prints.add(pass_fingerprint(found, {}, 0, "cpu"))
    assert len(prints) == 3, "a finished block that was made for another processor is not reused"


def made(recipe: Recipe, model: Path, work: Path) -> str:
    """Return the hash of the graph, made on the processor of the moment."""
    prepared = prepare(recipe, str(model))
    setting = Setting(work=work / "work", fingerprint="f", cache_bytes=1 << 30, target=prepared.target)
    changed, _ = apply_pass(prepared.passes[0], prepared.source, toy_batches(prepared.source.task), setting)
    (work / "out").mkdir()
    export_model(changed, work / "out", prepared.recipe.export, artifact_dtype(prepared))
    return sha256_of(work / "out" / "model.onnx")


def test_the_same_target_gives_the_same_bytes_on_any_machine(
    make_recipe: Maker, pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for machine in ("x86-avx2", "x86-vnni"):
        on(machine, monkeypatch)
        (tmp_path / machine).mkdir()
        hashes.append(made(recipe(make_recipe, "x86-vnni"), pico("bert"), tmp_path / machine))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("machine", "target", "options"),
    [
        ("x86-avx2", "x86-vnni", ["session.x64quantprecision"]),
        ("x86-avx2", "arm64", ["session.x64quantprecision"]),
        ("x86-vnni", "arm64", []),
        ("x86-vnni", "x86-avx2", []),
        ("x86-avx2", "x86-avx2", []),
        ("arm64", "x86-vnni", []),
        ("x86-avx2", None, []),
    ],
)
def test_products_are_those_of_the_target(
    machine: str, target: str | None, options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(machine, monkeypatch)
    (tmp_path / "compression.json").write_text(json.dumps({TARGET: target}))
    assert imitation(tmp_path) == options


def test_an_artifact_says_what_it_is_for(tmp_path: Path) -> None:
    assert target_of_folder(tmp_path) is None
    for content, expected in (({TARGET: "arm64"}, "arm64"), ({TARGET: "z80"}, None), ({TARGET: ["arm64"]}, None)):
        (tmp_path / "compression.json").write_text(json.dumps(content))
        assert target_of_folder(tmp_path) == expected
    for text in ("[]", "{", "[" * 100_000):
        (tmp_path / "compression.json").write_text(text)
        assert target_of_folder(tmp_path) is None
