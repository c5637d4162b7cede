"""Weight-only products: codes lie packed in blocks along the inputs, and activations stay floats.

Layouts (measured against ONNX Runtime, bits 2, 4 and 8): MatMulNBits reads codes along the inputs, low bits first, in
blocks [outputs, groups, group_size · bits / 8], the last one padded; zero points [outputs, ⌈groups · bits / 8⌉].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressor.exporters.onnx.grid_values import constant, derived
from compressor.exporters.onnx.nodes import new_node
from compressor.exporters.onnx.weights import Array


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes [..., n] packed along the last axis, low bits first: [..., ⌈n · bits / 8⌉]."""
    per_byte = 8 // bits
    missing = -codes.shape[-1] % per_byte
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    parts = padded.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts << shifts, axis=-1).astype(np.uint8)
    return packed


def matmul_nbits(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, str]:
    """Return the result of a product with packed weights, and the name of their codes."""
    inputs, outputs = node.attributes["K"].as_int(), node.attributes["N"].as_int()
    packed, scale, zero = _block_tensors(graph, node, inputs, outputs)
    product = new_node(
        node,
        "MatMulNBits",
        [node.inputs[0], packed, scale, *([zero] if zero is not None else [])],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=node.attributes["bits"].as_int(),
        block_size=node.attributes["group_size"].as_int(),
        accuracy_level=node.attributes["accuracy_level"].as_int(),
    )
    return product.outputs[0], str(packed.name)


def _block_tensors(
    graph: ir.Graph, node: ir.Node, inputs: int, outputs: int
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    bits, size = node.attributes["bits"].as_int(), node.attributes["group_size"].as_int()
    groups = -(-inputs // size)
    codes, scale, zero = (*node.inputs[1:4], None)[:3]
    assert codes is not None and scale is not None

    def blocks(array: Array) -> Array:
        padded = np.pad(array, [(0, 0), (0, groups * size - inputs)])
        return pack_bits(padded.reshape(outputs, groups, size), bits)

    packed = derived(graph, codes, "weight_packed", blocks, ir.DataType.UINT8, (outputs, groups, size * bits // 8))
    if zero is None:
        return packed, scale, None
    shape = (outputs, -(-groups * bits // 8))
    points = derived(graph, zero, "weight_zero_packed", lambda z: pack_bits(z, bits), ir.DataType.UINT8, shape)
    return packed, scale, points


def gather_blocks(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, str]:
    """Return the rows of a packed embedding, and the name of its codes."""
    inputs, outputs = node.attributes["K"].as_int(), node.attributes["N"].as_int()
    bits, size = node.attributes["bits"].as_int(), node.attributes["group_size"].as_int()
    packed, scale, zero = _block_tensors(graph, node, inputs, outputs)
    # A tied head reads the same codes in blocks; ONNX Runtime folds this reshape when the session starts.
    width = -(-inputs // size) * size * bits // 8
    shape = constant(graph, "grid.flat_rows", np.asarray([outputs, width], np.int64))
    rows = new_node(node, "Reshape", [packed, shape]).outputs[0]
    looked_up = new_node(
        node,
        "GatherBlockQuantized",
        [rows, node.inputs[0], scale, *([zero] if zero is not None else [])],
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=size,
        bits=bits,
    )
    result = looked_up.outputs[0]
    if inputs % size:
        ends = [constant(graph, f"grid.{n}", np.asarray([v], np.int64)) for n, v in (("from", 0), ("axis", -1))]
        stop = constant(graph, f"grid.to_{inputs}", np.asarray([inputs], np.int64))
        result = new_node(node, "Slice", [result, ends[0], stop, ends[1]]).outputs[0]
    return result, str(packed.name)
