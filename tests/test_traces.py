"""Traces that are kept are those of the model at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.model.folder import ModelFolder, open_model
from tests.traces import keeping_traces, signature

Pico = Callable[..., Path]
OPTIONS: dict[str, Any] = {"opset": 20, "dtype": torch.float32}


def sign(model: ModelFolder, **options: Any) -> str:
    found = signature(model.skeleton(), **{**OPTIONS, **options})
    assert found is not None
    return found


def test_a_kept_trace_gives_the_same_bytes(pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    monkeypatch.setattr("tests.traces._kept", {})
    with keeping_traces():
        monkeypatch.setattr("compressor.exporters.onnx.encoder.trace", _noting(traced))
        for name, seed in (("traced", 0), ("kept", 0), ("other weights", 1)):
            (tmp_path / name).mkdir()
            export_onnx(open_model(pico("bert", num_hidden_layers=1, seed=seed)), tmp_path / name, OnnxOptions())
    graphs = [(tmp_path / name / "model.onnx").read_bytes() for name in ("traced", "kept", "other weights")]
    assert len(traced) == 1 and graphs[0] == graphs[1] != graphs[2]


def _noting(traced: list[Any]) -> Callable[..., Any]:
    from compressor.exporters.onnx.trace import trace

    def noting(*given: Any) -> Any:
        traced.append(given)
        return trace(*given)

    return noting


@pytest.mark.parametrize("family", ["llama", "opt", "bert", "vit"])
def test_what_a_trace_depends_on(pico: Pico, family: str) -> None:
    model = open_model(pico(family))
    widths = [100] * len(model.shapes.layers)
    narrow = model.with_blueprint(model.blueprint.with_shapes(model.shapes.with_widths([*widths[1:], 99])))
    changed = type(model.config).from_dict({**model.config.to_dict(), "initializer_range": 0.5})
    others = [sign(narrow), sign(replace(model, config=changed)), sign(model, opset=21)]
    assert sign(model) == sign(open_model(pico(family, seed=1)))
    assert len({sign(model), *others}) == 4


def test_a_module_that_holds_an_unknown_object_is_traced_each_time(pico: Pico) -> None:
    module = open_model(pico("vit")).skeleton()
    module.state = object()  # type: ignore[assignment]
    assert signature(module, **OPTIONS) is None
