"""Products of 8-bit integers: codes are signed bytes, inputs are rounded by calibrated or by measured ranges.

Grids with one group per input (scale_ij = scale_i · factor_j) have their input multiplied first.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.exporters.onnx.grid_values import constant, derived, present
from compressor.exporters.onnx.nodes import new_node
from compressor.exporters.onnx.weights import Array, sizes

Input: TypeAlias = tuple[int, float, int, bytes | None]
"""Of an integer product: which value it reads, step and zero point (static), factors (float32 bytes)."""


def _signed(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the codes as signed bytes [outputs, inputs]; symmetric 8-bit grids alone have them."""
    codes = node.inputs[1]
    assert codes is not None
    shape = sizes(codes.shape)
    return derived(graph, codes, "weight_int8", _to_signed, ir.DataType.INT8, shape)


def _in_rows(graph: ir.Graph, node: ir.Node) -> bool:
    """Tell whether an embedding holds the same codes, stored by rows: the runtime transposes them when it loads."""
    codes = present(node.inputs[1])
    shared = any(use.node.op_type == "GridGather" for use in codes.uses())
    return shared or any(use.node.op_type == "Gather" for use in present(node.inputs[2]).uses())


def _signed_columns(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the codes as signed bytes [inputs, outputs]."""
    if _in_rows(graph, node):
        return new_node(node, "Transpose", [_signed(graph, node)], perm=[1, 0]).outputs[0]
    codes = present(node.inputs[1])
    outputs, inputs = sizes(codes.shape)
    return derived(graph, codes, "weight_int8", lambda c: _to_signed(c).T, ir.DataType.INT8, (inputs, outputs))


def _to_signed(codes: Array) -> Array:
    return (codes.astype(np.int16) - 128).astype(np.int8)


def _name_of(value: ir.Value, leaf: str) -> str:
    return f"{str(value.name).rpartition('.')[0]}.{leaf}"


def _scales(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the outputs' scales [outputs]: of a grid with factors, those of its first input, whose factor is 1."""
    scale = present(node.inputs[2])
    shape = (sizes(scale.shape)[0],)
    if _in_rows(graph, node):
        flat = constant(graph, "grid.flat", np.asarray([-1], np.int64))
        return new_node(node, "Reshape", [scale, flat]).outputs[0]
    return derived(graph, scale, "weight_scales", lambda s: s[:, 0], ir.DataType.FLOAT, shape)


def gather_rows(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, str]:
    """Look up bytes and their rows' scales: as precise as a scale per row, and nothing but rows is widened."""
    codes, scale = _signed(graph, node), node.inputs[2]
    rows = new_node(node, "Gather", [codes, node.inputs[0]], axis=0).outputs[0]
    factors = new_node(node, "Gather", [scale, node.inputs[0]], axis=0).outputs[0]
    wide = new_node(node, "Cast", [rows], to=int(ir.DataType.FLOAT)).outputs[0]
    return new_node(node, "Mul", [wide, factors]).outputs[0], str(codes.name)


def _input(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, Input]:
    """Return the input of an integer product, and what identifies its codes: products that agree in it share them."""
    source, scale = node.inputs[0], node.inputs[2]
    assert source is not None and scale is not None and scale.const_value is not None
    static = (node.attributes["input_scale"].as_float(), node.attributes["input_zero_point"].as_int())
    factors = None
    if node.attributes["group_size"].as_int() == 1:
        factors = _factors(scale.const_value.numpy(), str(scale.name))
    return source, (id(source), *static, None if factors is None else factors.tobytes())


def _factors(scale: Array, name: str) -> Array:
    """Return what inputs are multiplied by, [inputs]: scale_ij = scale_i0 · factor_j.

    Raises:
        ModelError: the scales are not of that form, so no integer product has them.
    """
    factors: Array = scale[0] / scale[0, 0]
    if not np.array_equal(scale[:, :1] * factors, scale):
        raise ModelError(f"{name}: an integer product takes one scale per output, times one factor per input")
    return factors


def _multiplied(graph: ir.Graph, node: ir.Node, source: ir.Value, key: Input) -> ir.Value:
    """Return `source`, multiplied by the factors of a product's grid where it has any."""
    if key[-1] is None:
        return source
    wide = np.frombuffer(key[-1], np.float32)
    with np.errstate(over="ignore"):
        short = wide.astype(np.float16)
    exact = np.array_equal(short, wide)
    factors = constant(graph, _name_of(present(node.inputs[2]), "input_factors"), short if exact else wide)
    if exact:  # powers of two: half the bytes on disk, widened when the session starts
        factors = new_node(node, "Cast", [factors], to=int(ir.DataType.FLOAT)).outputs[0]
    return new_node(node, "Mul", [source, factors]).outputs[0]


def _stem(graph: ir.Graph, node: ir.Node) -> str:
    return str(present(node.inputs[1]).name).rpartition(".")[0]


def dynamic(graph: ir.Graph, node: ir.Node, quantized: dict[Input, list[ir.Value]]) -> tuple[ir.Value, str]:
    """Return the result of a product whose input is rounded by its own range, and the name of the weight's codes.

    `quantized` holds the codes, scale and zero point of the inputs that earlier products have rounded.
    """
    source, key = _input(graph, node)
    if key not in quantized:
        read = _multiplied(graph, node, source, key)
        quantized[key] = list(new_node(node, "DynamicQuantizeLinear", [read], outputs=3).outputs)
    codes, scale, zero = quantized[key]
    weight = _signed_columns(graph, node)
    summed = new_node(node, "MatMulInteger", [codes, weight, zero]).outputs[0]
    wide = new_node(node, "Cast", [summed], to=int(ir.DataType.FLOAT)).outputs[0]
    factor = new_node(node, "Mul", [scale, _scales(graph, node)]).outputs[0]
    return new_node(node, "Mul", [wide, factor]).outputs[0], f"{_stem(graph, node)}.weight_int8"


def static(
    graph: ir.Graph, node: ir.Node, quantized: dict[Input, list[ir.Value]], *, signed: bool
) -> tuple[ir.Value, str]:
    """Return the result of a product whose input is rounded by a calibrated range, and the name of the weight's codes.

    `quantized` holds the inputs that earlier products have rounded; `signed` makes their codes signed bytes.
    """
    source, key = _input(graph, node)
    stem = _stem(graph, node)
    # ONNX Runtime makes a Gemm of a product of rank 2 and its bias, and then leaves it in float.
    flat = source.shape is not None and len(source.shape) == 2
    axis = constant(graph, "grid.first", np.asarray([0], np.int64)) if flat else None
    if key not in quantized:
        read = _multiplied(graph, node, source, key)
        read = new_node(node, "Unsqueeze", [read, axis]).outputs[0] if flat else read
        scale = constant(graph, f"{stem}.input_scale", np.float32(key[1]))
        point = np.int8(key[2] - 128) if signed else np.uint8(key[2])
        zero = constant(graph, f"{stem}.input_zero_point", point)
        codes = new_node(node, "QuantizeLinear", [read, scale, zero]).outputs[0]
        quantized[key] = [new_node(node, "DequantizeLinear", [codes, scale, zero]).outputs[0]]
    weight = _signed_columns(graph, node)
    count = node.attributes["N"].as_int()
    # One for each product: ONNX Runtime's transformers of weights fail on a zero point that two share.
    zeros = constant(graph, f"{stem}.weight_zeros", np.zeros(count, np.int8))
    wide = new_node(node, "DequantizeLinear", [weight, _scales(graph, node), zeros], axis=1).outputs[0]
    result = new_node(node, "MatMul", [quantized[key][0], wide]).outputs[0]
    result = new_node(node, "Squeeze", [result, axis]).outputs[0] if flat else result
    return result, f"{stem}.weight_int8"
