"""Weights that are equal, or zero, by chance: each stays in the graph under its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.exporters.onnx import export_onnx
from compressor.exporters.onnx.passes import tidy
from compressor.exporters.onnx.weights import lazy
from compressor.model.folder import open_model
from tests.exporters.session import Decoder, stock
from tests.exporters.test_decoder import check_parity
from tests.pico import make_pico


@pytest.mark.parametrize(
    ("family", "overrides"), [("qwen2", {}), ("llama", {"attention_bias": True, "mlp_bias": True}), ("opt", {})]
)
def test_decoders_whose_biases_are_all_zero(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    source, out = make_pico(family, tmp_path / "model", num_hidden_layers=2, **overrides), tmp_path / "out"
    out.mkdir()
    file = source / "model.safetensors"
    weights = {name: torch.zeros_like(t) if name.endswith("bias") else t for name, t in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    export_onnx(open_model(source), out)
    stored = {tensor.name for tensor in onnx.load(out / "model.onnx").graph.initializer}
    joined = {name for name in stored if name.endswith("qkv_proj.bias")}
    single = {name for name in stored if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))}
    assert (len(joined), len(single)) in {(2, 0), (0, 6)}
    check_parity(stock(source), Decoder(out))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_vectors_stay_apart(value: float) -> None:
    def weight(name: str) -> ir.Value:
        tensor = lazy(lambda: torch.full((4,), value).numpy(), ir.DataType.FLOAT, [4], name)
        return ir.Value(name=name, shape=ir.Shape([4]), type=ir.TensorType(tensor.dtype), const_value=tensor)

    x = ir.Value(name="x", shape=ir.Shape(["n", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    weights = [weight(f"norm{i}.weight") for i in range(2)]
    nodes = [ir.node("Add", [x, weights[0]]), ir.node("Mul", [x, weights[1]])]
    nodes.append(ir.node("Add", [nodes[0].outputs[0], nodes[1].outputs[0]]))
    result = nodes[-1].outputs[0]
    graph = ir.Graph([x], [result], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="g")
    result.name = "y"
    tidy(ir.Model(graph, ir_version=10))
    assert [node.op_type for node in graph] == ["Add", "Mul", "Add"]
    assert set(graph.initializers) == {"norm0.weight", "norm1.weight"}
    assert all(v.const_value is not None for v in graph.initializers.values())
