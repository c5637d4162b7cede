"""An export tells how far it is, as often as it said that it would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.exporters.onnx import export_onnx, saving
from compressor.exporters.safetensors import export_safetensors
from compressor.exporters.steps import STEPS, WeightSteps
from compressor.model.folder import open_model

TENTHS = [f"{tenth} % of the weights" for tenth in range(10, 101, 10)]


def test_weights_in_tenths() -> None:
    told: list[str] = []
    steps = WeightSteps(100, told.append)
    steps.written(9)
    assert told == []
    steps.written(1)
    steps.written(25)
    assert told == TENTHS[:3]
    steps.written(60)  # what is missing is written with the graph
    steps.finish()
    assert told == TENTHS


@pytest.mark.parametrize("beside", [False, True])
def test_a_graph(beside: bool, pico: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if beside:
        monkeypatch.setattr(saving, "INLINE_LIMIT", 0)
    told: list[str] = []
    export_onnx(open_model(pico("bert")), tmp_path, advance=told.append)
    assert (tmp_path / "model.onnx.data").is_file() == beside
    assert told == ["graph traced", "graph in order", *TENTHS] and len(told) == STEPS["onnx"]


def test_safetensors(pico: Callable[..., Path], tmp_path: Path) -> None:
    told: list[str] = []
    export_safetensors(open_model(pico("bert")), tmp_path, advance=told.append)
    assert told == TENTHS and len(told) == STEPS["safetensors"]
