"""Products with quantized weights: codes are packed from the grid on which PyTorch put the weights.

A weight that lies on a grid is first *marked*: its product becomes a `GridProduct` node, whose codes [outputs, inputs],
scales and zero points can be joined with those of its neighbours like any weight. `lower` then writes what runs:

| grid | operators |
|---|---|
| float activations | com.microsoft MatMulNBits; an embedding: com.microsoft GatherBlockQuantized |
| dynamic 8-bit activations | DynamicQuantizeLinear, MatMulInteger, Cast, Mul |
| static 8-bit activations | QuantizeLinear, DequantizeLinear around MatMul (QDQ), which ONNX Runtime fuses |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.exporters.onnx.grid_values import PARTS, initializer
from compressor.exporters.onnx.integer_products import Input, dynamic, gather_rows, static
from compressor.exporters.onnx.nodes import by_type, is_weight, new_node, replace
from compressor.exporters.onnx.packed_products import gather_blocks, matmul_nbits
from compressor.exporters.onnx.weights import Array, sizes
from compressor.storage.grids import Grid, GridSpec

PRODUCT = "GridProduct"
_SPEC = ("bits", "group_size", "activations", "input_scale", "input_zero_point", "accuracy_level")


class Grids(Protocol):
    """Where the grids of a model come from: a `compressor.model.folder.ModelFolder`."""

    @property
    def grids(self) -> Any:
        """Mapping of module name to `GridSpec`."""

    def grid(self, module: str) -> Grid:
        """Return the grid of a module, numbers included."""


def mark(graph: ir.Graph, source: Grids) -> None:
    """Turn MatMul and Gather on weights with grids into `GridProduct` and `GridGather`, in place.

    Raises:
        ModelError: a weight with a grid is read by something that has no quantized form.
    """
    found = set()
    for node in by_type(graph, "MatMul", "Gather"):
        index = 1 if node.op_type == "MatMul" else 0
        value = _stored(node.inputs[index])
        module = str(value.name).removesuffix(".weight") if value is not None else ""
        if value is None or module not in source.grids:
            continue
        if node.op_type == "Gather" and node.attributes.get("axis") and node.attributes["axis"].as_int() != 0:
            continue
        found.add(module)
        tensors = _grid_values(graph, source, module, value)
        spec = source.grids[module]
        other = node.inputs[1 - index]
        attributes = {key: getattr(spec, key) for key in _SPEC}
        outputs, inputs = _sides(tensors[0])
        kind = PRODUCT if node.op_type == "MatMul" else "GridGather"
        made = new_node(node, kind, [other, *tensors], domain="compressor", K=inputs, N=outputs, **attributes)
        replace(node.outputs[0], made.outputs[0])
        graph.remove(node, safe=True)
    if missed := sorted(set(source.grids) - found):
        raise ModelError(f"quantized weights of {', '.join(missed[:4])} are read by operators that cannot use codes")


def _sides(codes: ir.Value | None) -> tuple[int, ...]:
    assert codes is not None
    return sizes(codes.shape)


def _stored(value: ir.Value | None) -> ir.Value | None:
    """Return the stored weight behind a value: itself, or what a Transpose of it reads."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Transpose":
        value = node.inputs[0]
    return value if is_weight(value) else None


def _grid_values(graph: ir.Graph, source: Grids, module: str, weight: ir.Value) -> list[ir.Value | None]:
    """Return initializers of codes [outputs, inputs], scales and zero points (or None); made once per module."""
    tensor = weight.const_value
    assert tensor is not None
    spec: GridSpec = source.grids[module]
    shape = sizes(tensor.shape)
    # A product's weight is stored [inputs, outputs] by now, that of an embedding as it came.
    transposed = module not in _embeddings(graph, weight)
    outputs, inputs = (shape[1], shape[0]) if transposed else shape
    groups = spec.groups(inputs)

    def codes() -> Array:
        import torch

        matrix = torch.from_numpy(tensor.numpy())
        matrix = matrix.T if transposed else matrix
        return np.asarray(source.grid(module).exact_codes(matrix, module).numpy())

    def numbers(leaf: str) -> Callable[[], Array]:
        return lambda: np.asarray(source.grid(module).tensors()[leaf].numpy())

    made = [initializer(graph, f"{module}.weight_codes", codes, ir.DataType.UINT8, (outputs, inputs), module)]
    made.append(
        initializer(
            graph, f"{module}.weight_scale", numbers("weight_scale"), ir.DataType.FLOAT, (outputs, groups), module
        )
    )
    if spec.symmetric:
        return [*made, None]
    leaf = "weight_zero_point"
    made.append(initializer(graph, f"{module}.{leaf}", numbers(leaf), ir.DataType.UINT8, (outputs, groups), module))
    return [*made]


def _embeddings(graph: ir.Graph, weight: ir.Value) -> set[str]:
    """Return the module of `weight` if it is stored as an embedding: read by Gather, or through a Transpose."""
    kinds = {use.node.op_type for use in weight.uses()}
    return {str(weight.name).removesuffix(".weight")} if kinds & {"Gather", "Transpose"} else set()


def alike(products: list[ir.Node]) -> bool:
    """Tell whether grid products can be computed as one: same input, kind and groups."""
    facts = {(*(str(p.attributes[key].value) for key in (*_SPEC, "K")), p.inputs[3] is None) for p in products}
    return len(facts) == 1


def lower(graph: ir.Graph, *, signed: bool = False) -> dict[str, list[str]]:
    """Write operators that ONNX Runtime runs, in place.

    Args:
        graph: of marked products.
        signed: whether calibrated inputs are rounded to signed bytes: the same steps, every code less 128.

    Returns:
        Initializer of codes -> the modules whose weights it holds, one after another along the outputs.
    """
    stored: dict[str, list[str]] = {}
    quantized: dict[Input, list[ir.Value]] = {}
    for node in by_type(graph, PRODUCT, "GridGather"):
        codes = node.inputs[1]
        assert codes is not None
        kind = node.attributes["activations"].as_string()
        if node.op_type == "GridGather":
            result, name = (gather_blocks if kind == "float" else gather_rows)(graph, node)
        elif kind == "float":
            result, name = matmul_nbits(graph, node)
        else:
            make = dynamic if kind == "dynamic" else partial(static, signed=signed)
            result, name = make(graph, node, quantized)
        stored[name] = codes.metadata_props[PARTS].split(",")
        replace(node.outputs[0], result)
        graph.remove(node, safe=True)
    if stored:
        graph.opset_imports.setdefault("com.microsoft", 1)
    return stored
