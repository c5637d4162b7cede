"""Graphs are timed and evaluated in a process of their own, whose end is an error of ours."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import CompressorError, ModelError, ResourceError
from compressor.machine.fresh import Ended
from compressor.machine.progress import NullProgress, PlainProgress
from compressor.measure.timing import Footprint, Phase, Series, Timing
from compressor.pipeline import alone


def dividing(folder: Path, dividend: int, divisor: int) -> None:
    """Write a graph that divides these two numbers when it runs, not when it is opened."""
    nodes = [
        helper.make_node("Sub", ["input_ids", "input_ids"], ["zero"]),
        helper.make_node("Add", ["zero", "dividend"], ["a"]),
        helper.make_node("Add", ["zero", "divisor"], ["b"]),
        helper.make_node("Div", ["a", "b"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["cast", "axis"], ["last_hidden_state"]),
    ]
    numbers = {"dividend": np.array(dividend), "divisor": np.array(divisor), "axis": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", 1])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


def test_a_graph_that_ends_its_process(pico: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pico("bert"), folder)
    dividing(folder, -(2**63), -1)
    told = io.StringIO()
    (tmp_path / "lines.txt").write_text("one line\nanother line\n")
    with pytest.raises(ModelError, match=r"model: the graph ended the process that ran it \(signal \d+\)") as caught:
        alone.evaluate(str(folder), data=str(tmp_path / "lines.txt"), length=8, progress=PlainProgress(told))
    assert caught.value.exit_code == 3
    assert [line.rpartition("] ")[2] for line in told.getvalue().splitlines()] == ["load", "evaluate"]


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Ended(-8, "", ""), ModelError),
        (Ended(-6, "", "terminate called"), ModelError),
        (Ended(-9, "", ""), ResourceError),
        (Ended(1, "", "ImportError: libtorch_cpu.so: failed to map segment from shared object"), ResourceError),
        (Ended(1, "", "KeyError: 3"), CompressorError),
    ],
)
def test_how_a_process_ends(ended: Ended, kind: type[CompressorError], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.machine.asking.run_preloaded", lambda *arguments, **options: ended)
    monkeypatch.setattr(alone, "runtime_model", lambda folder: folder / "model.onnx")
    with pytest.raises(CompressorError, match="^model: ") as caught:
        alone.bench("model", progress=NullProgress())
    assert type(caught.value) is kind


@pytest.mark.parametrize("other", [None, Series([0.5], [0.6])])
def test_a_timing_comes_back_whole(other: Series | None) -> None:
    phase = Phase("prefill", 1, 8, 8, "cpu", Series([0.1], [0.2]), other)
    timing = Timing(1, 1, [phase], Footprint(5, None), Footprint(6, 7) if other else None)
    assert alone._timing(json.loads(json.dumps(asdict(timing)))) == timing
