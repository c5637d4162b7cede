"""Damage to INT8 graphs that a cosine does not see, with every file hash right: rounding of inputs, floats between."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compressor.model.folder import open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.verification.manifest import read_manifest
from tests.core.toy import toy_batches
from tests.verification.test_sabotage import reasons, rehash, reseal
from tests.verification.test_sabotage_quantized import edit, judged, one, sealed

Pico = Callable[..., Path]


@pytest.fixture(scope="module")
def made(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return `made(method, family)`: a sealed artifact."""
    root = tmp_path_factory.mktemp("int8")

    def make(name: str, family: str) -> Path:
        out = root / f"{name}-{family}"
        if not out.exists():
            source = open_model(pico(family))
            method = methods()[name](methods()[name].Options())
            setting = Setting(work=root / f"work-{name}-{family}", fingerprint="f", cache_bytes=1 << 30)
            model, _ = apply_pass(method, source, toy_batches(source.task), setting)
            sealed(model, out, "onnx")
        return out

    return make


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "victim"))


def stored(folder: Path, ending: str) -> str:
    """Return the first stored tensor whose name ends so, of the last block."""
    names = [t.name for t in onnx.load(str(folder / "model.onnx")).graph.initializer if t.name.endswith(ending)]
    return next(name for name in names if ".1." in name)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        ("int8-dynamic", "llama"),
        ("int8-static", "opt"),
        ("int8-static", "bert"),
        ("int8-static", "vit"),
        *(pytest.param("int8-dynamic", family, marks=pytest.mark.exhaustive) for family in ("opt", "bert", "vit")),
        pytest.param("int8-static", "llama", marks=pytest.mark.exhaustive),
    ],
)
def test_a_healthy_artifact_agrees_without_rounding(method: str, family: str, made: Callable[[str, str], Path]) -> None:
    """The graph without rounded inputs is as near to the torch-side model as a float export."""
    verdict = judged(made(method, family))
    assert not reasons(verdict), reasons(verdict)
    checks = {check.name: check for check in verdict.checks}
    assert checks["parity.exact.batch.max_abs"].bound is not None
    assert ("weights.inputs" in checks) == (method == "int8-static")


FLOATS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "scaled norm": ("opt", "final_layer_norm.weight", one(lambda a: a * 1.5)),
    "shifted bias": ("opt", "fc1.bias", one(lambda a: a + 0.1)),
    "shifted norm": ("bert", "output.LayerNorm.bias", one(lambda a: a + 0.1)),
}


@pytest.mark.parametrize("case", FLOATS)
@pytest.mark.parametrize("method", ["int8-dynamic", "int8-static"])
def test_floats_beside_the_codes(method: str, case: str, made: Callable[[str, str], Path], tmp_path: Path) -> None:
    family, ending, change = FLOATS[case]
    victim = copied(made(method, family), tmp_path)
    edit(victim, stored(victim, ending), change)
    verdict = judged(victim)
    assert verdict.exit_code == 4
    assert any(name.startswith("parity.exact.") for name in reasons(verdict)), reasons(verdict)


INPUTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "stale step": ("input_scale", lambda a: a * np.float32(1.02)),
    "wrong zero point": ("input_zero_point", lambda a: a + np.uint8(3)),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_grids_of_inputs(case: str, family: str, made: Callable[[str, str], Path], tmp_path: Path) -> None:
    ending, change = INPUTS[case]
    victim = copied(made("int8-static", family), tmp_path)
    edit(victim, stored(victim, ending), change)
    verdict = judged(victim)
    assert verdict.exit_code == 4
    assert "calibrated were" in reasons(verdict)["weights.inputs"]


def test_an_input_widened_from_another_grid(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    victim = copied(made("int8-static", "llama"), tmp_path)
    path = victim / "model.onnx"
    model = onnx.load(str(path))
    scales = sorted({n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear"})
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[1] == scales[0])
    node.input[1] = scales[1]
    onnx.save(model, str(path))
    rehash(victim)
    assert "weights.inputs" in reasons(judged(victim))


def test_the_manifest_forgets_the_inputs(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    victim = copied(made("int8-static", "llama"), tmp_path)
    reseal(victim, {key: value for key, value in read_manifest(victim).items() if key != "input_grids"})
    assert "calibrated were None" in reasons(judged(victim))["weights.inputs"]
