"""The recorded outputs: small, deterministic, sensitive to single columns, gated by precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open

from compressor.data.kinds import Inputs
from compressor.errors import ModelError
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.runner import Array
from compressor.measure.torch_runner import TorchRunner
from compressor.verification import REFERENCE, write_reference
from compressor.verification.reference import check_determinism, check_reference
from compressor.verification.tolerances import TOLERANCES
from compressor.verification.verdict import Check
from tests.verification.conftest import export


class Tampered(OnnxRunner):
    """An artifact whose output differs in one column, by little."""

    column = 0
    by = 0.0

    def forward(self, inputs: Inputs) -> Array:
        out = super().forward(inputs).copy()
        out[..., self.column] += self.by
        return out


def failing(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_same_model_same_bytes(pico: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_reference(TorchRunner(pico("llama")), tmp_path / name)
    write_reference(TorchRunner(pico("llama")), tmp_path / "c", seed=1)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_file_stays_small(pico: Callable[..., Path], tmp_path: Path) -> None:
    folder = pico("llama", vocab_size=30_000)
    write_reference(TorchRunner(folder), tmp_path / REFERENCE)
    assert (tmp_path / REFERENCE).stat().st_size < 800_000
    with safe_open(tmp_path / REFERENCE, framework="numpy") as handle:
        columns = handle.get_tensor("columns")
    assert len(columns) == len(set(columns.tolist())) == 1024
    assert columns.max() > 20_000


def test_a_column_that_was_not_recorded_is_watched_too(pico: Callable[..., Path], tmp_path: Path) -> None:
    folder = export(pico("llama", vocab_size=3000), tmp_path / "wide")
    with safe_open(folder / REFERENCE, framework="numpy") as handle:
        unrecorded = sorted(set(range(3000)) - set(handle.get_tensor("columns").tolist()))
    runner = Tampered(folder)
    runner.column = unrecorded[7]
    assert failing(check_reference(runner, folder / REFERENCE)) == set()
    runner.by = 0.1
    assert {"parity.prefill.max_abs", "parity.padding.max_abs"} <= failing(check_reference(runner, folder / REFERENCE))


def test_every_shape_is_compared(artifact: Path) -> None:
    names = {check.name for check in check_reference(OnnxRunner(artifact), artifact / REFERENCE)}
    shapes = ("prefill", "batch", "padding", "chunked", "decode", "continued", "wide", "long")
    assert names == {f"parity.{s}.max_abs" for s in shapes} | {"parity.argmax", "parity.greedy"}


def test_half_precision_has_its_own_gate(pico: Callable[..., Path], tmp_path: Path) -> None:
    folder = export(pico("llama"), tmp_path / "half", precision="float16", dtype="float16")
    runner = OnnxRunner(folder)
    assert failing(check_reference(runner, folder / REFERENCE, "float16")) == set()
    assert "parity.batch.max_abs" in failing(check_reference(runner, folder / REFERENCE, "float32"))


@pytest.mark.parametrize("precision", TOLERANCES)
def test_every_gate_refuses_another_model(precision: str, pico: Callable[..., Path], artifact: Path) -> None:
    found = failing(check_reference(TorchRunner(pico("llama", seed=3)), artifact / REFERENCE, precision))
    if TOLERANCES[precision].cosine is not None:
        assert {"parity.cosine", "parity.cosine_low"} <= found
    else:
        assert {name.split(".")[1] for name in found} >= {"prefill", "batch", "padding", "decode"}


def test_images_are_stored_as_blocks(pico: Callable[..., Path], tmp_path: Path) -> None:
    write_reference(TorchRunner(pico("vit")), tmp_path / REFERENCE)
    assert failing(check_reference(TorchRunner(pico("vit")), tmp_path / REFERENCE)) == set()
    assert (tmp_path / REFERENCE).stat().st_size < 10_000, "the pixels alone would take 250 KB"


def test_a_broken_model_has_no_reference(tmp_path: Path, pico: Callable[..., Path]) -> None:
    import torch

    runner = TorchRunner(pico("llama"))
    with torch.no_grad():
        runner._model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        write_reference(runner, tmp_path / REFERENCE)
    assert not (tmp_path / REFERENCE).exists()


def test_noise_between_two_runs_is_noticed(artifact: Path) -> None:
    class Noisy(OnnxRunner):
        def forward(self, inputs: Inputs) -> Array:
            noise = np.random.default_rng().standard_normal(1).astype(np.float32)
            return super().forward(inputs) + noise * np.float32(1e-3)

    assert check_determinism(OnnxRunner(artifact), artifact / REFERENCE).passed
    assert not check_determinism(Noisy(artifact), artifact / REFERENCE).passed


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"reference": "{}"},
        {"reference": "[]"},
        {"reference": "null"},
        {"reference": "[" * 100_000},
        {"reference": '{"task": "text-generation", "cases": [{"name": "a", "batch": 1, "chunks": [0]}]}'},
        {"reference": '{"task": "text-generation", "cases": [{"name": "a"}]}'},
        {"reference": '{"task": 3, "cases": []}'},
    ],
    ids=range(9),
)
def test_a_damaged_list_of_probes_is_named(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"columns": np.arange(3)}, tmp_path / "reference.safetensors", metadata=metadata)
    runner = SimpleNamespace(task="text-generation")
    (check,) = check_reference(runner, tmp_path / "reference.safetensors")  # type: ignore[arg-type]
    assert not check.passed and "reference.safetensors cannot be read: " in check.reason
    assert not check_determinism(runner, tmp_path / "reference.safetensors").passed  # type: ignore[arg-type]
