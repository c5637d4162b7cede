"""safetensors artifacts are judged by the same rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import open_model
from compressor.verification import REFERENCE, Job, Verdict, parameter_count, seal, verify, write_reference
from tests.verification.test_sabotage import reasons, rehash


@pytest.fixture
def victim(pico: Callable[..., Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(pico("llama"), tmp_path / "artifact"))
    write_reference(TorchRunner(folder), folder / REFERENCE)
    seal(folder, {"parameters": parameter_count(open_model(folder))})
    return folder


@pytest.fixture
def judge(pico: Callable[..., Path]) -> Callable[[Path], Verdict]:
    return lambda folder: verify(Job(folder, dense=pico("llama"), timing=False))


def edit(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    rehash(folder)


def test_healthy(victim: Path, judge: Callable[[Path], Verdict]) -> None:
    verdict = judge(victim)
    assert reasons(verdict) == {}
    assert "parity.left_padding.max_abs" in {c.name for c in verdict.checks}


NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "expected", "code"),
    [
        (lambda t: {**t, NAME: torch.zeros_like(t[NAME])}, "weights.nonzero", 4),
        (lambda t: {**t, NAME: t[NAME] * 1.01}, "parity.batch.max_abs", 4),
        (lambda t: {**t, NAME: t[NAME].flip(0)}, "parity.greedy", 4),
        (lambda t: {**t, NAME: t[NAME] * float("nan")}, "weights.finite", 4),
        (lambda t: {**t, NAME: t[NAME][:, :-1].contiguous()}, "shapes.weights", 3),
        (lambda t: {k: v for k, v in t.items() if k != NAME}, "model.loads", 3),
    ],
)
def test_damaged_weights(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    expected: str,
    code: int,
    victim: Path,
    judge: Callable[[Path], Verdict],
) -> None:
    edit(victim, change)
    verdict = judge(victim)
    assert expected in reasons(verdict)
    assert verdict.exit_code == code


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.9])
def test_truncated(keep: float, victim: Path, judge: Callable[[Path], Verdict]) -> None:
    path = victim / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 3
    assert "safetensors" in reasons(verdict)["weights.readable"]


def test_index_that_points_outside(victim: Path, judge: Callable[[Path], Verdict]) -> None:
    shutil.move(victim / "model.safetensors", victim.parent / "model.safetensors")
    names = list(load_file(victim.parent / "model.safetensors"))
    index = {"weight_map": dict.fromkeys(names, "../model.safetensors")}
    (victim / "model.safetensors.index.json").write_text(json.dumps(index))
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 3
    assert "outside" in reasons(verdict)["weights.readable"]
    assert not any(check.name in ("model.loads", "parity.batch.max_abs") for check in verdict.checks)
