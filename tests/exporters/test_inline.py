"""A file written weight by weight is the message that the protobuf library would have written."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from compressor.exporters.onnx.inline import write_inline


def model_of(tensors: list[ir.TensorProtocol]) -> ir.Model:
    """Return a graph that has nothing but these weights and one node."""
    graph = ir.Graph([], [], nodes=[ir.node("Identity", [])], name="g", opset_imports={"": 20})
    for tensor in tensors:
        graph.initializers.add(ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape))
    return ir.Model(graph, ir_version=10, producer_name="compressor")


def test_it_reads_back_as_the_same_message(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.standard_normal((300, 70)).astype(np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "codes": rng.integers(0, 255, (3, 4, 5)).astype(np.uint8),
        "int4": rng.integers(-8, 7, (3, 3)).astype(ml_dtypes.int4),
        "shape": np.array([0, -1, 4], dtype=np.int64),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }
    model = model_of([ir.tensor(array, name=name) for name, array in arrays.items()])
    seen: list[int] = []
    write_inline(model, tmp_path / "m.onnx", seen.append)
    found = onnx.load(tmp_path / "m.onnx")
    assert found == ir.to_proto(model)
    assert {t.name: onnx.numpy_helper.to_array(t).tolist() for t in found.graph.initializer} == {
        name: array.tolist() for name, array in arrays.items()
    }
    assert seen == [model.graph.initializers[name].const_value.nbytes for name in arrays]  # type: ignore[union-attr]


def test_one_weight_at_a_time(tmp_path: Path) -> None:
    size, count = 1 << 20, 12

    def lazy(index: int) -> ir.LazyTensor:
        make = lambda: ir.tensor(np.full(size, index, dtype=np.uint8))  # noqa: E731
        return ir.LazyTensor(make, dtype=ir.DataType.UINT8, shape=ir.Shape([size]), name=f"w{index}")

    model = model_of([lazy(index) for index in range(count)])
    tracemalloc.start()
    write_inline(model, tmp_path / "m.onnx", lambda _: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size
    assert [t.raw_data[0] for t in onnx.load(tmp_path / "m.onnx").graph.initializer] == list(range(count))
