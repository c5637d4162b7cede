"""Products with quantized weights: codes are packed from the grid on which PyTorch put the weights.

A weight that lies on a grid is first *marked*: its product becomes a `GridProduct` node, whose codes [outputs, inputs],
scales and zero points can be joined with those of its neighbours like any weight. `lower` then writes what runs:

| grid | operators |
|---|---|
| float activations | com.microsoft MatMulNBits; an embedding: com.microsoft GatherBlockQuantized |
| dynamic 8-bit activations | DynamicQuantizeLinear, MatMulInteger, Cast, Mul |
| static 8-bit activations | QuantizeLinear, DequantizeLinear around MatMul (QDQ), which ONNX Runtime fuses |

Grids of integer products with one group per input (scale_ij = scale_i · factor_j) have their input multiplied first.

Layouts (measured against ONNX Runtime, bits 2, 4 and 8): MatMulNBits reads codes along the inputs, low bits first, in
blocks [outputs, groups, group_size · bits / 8], the last one padded; zero points [outputs, ⌈groups · bits / 8⌉].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressor.errors import ModelError
from compressor.exporters.onnx.nodes import by_type, is_weight, new_node, replace
from compressor.exporters.onnx.weights import Array, lazy, sizes
from compressor.storage.grids import Grid, GridSpec

PRODUCT = "GridProduct"
PARTS = "modules"
_Input = tuple[int, float, int, bytes | None]
"""Of an integer product: which value it reads, step and zero point (static), factors (float32 bytes)."""
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

    made = [_initializer(graph, f"{module}.weight_codes", codes, ir.DataType.UINT8, (outputs, inputs), module)]
    made.append(
        _initializer(
            graph, f"{module}.weight_scale", numbers("weight_scale"), ir.DataType.FLOAT, (outputs, groups), module
        )
    )
    if spec.symmetric:
        return [*made, None]
    leaf = "weight_zero_point"
    made.append(_initializer(graph, f"{module}.{leaf}", numbers(leaf), ir.DataType.UINT8, (outputs, groups), module))
    return [*made]


def _embeddings(graph: ir.Graph, weight: ir.Value) -> set[str]:
    """Return the module of `weight` if it is stored as an embedding: read by Gather, or through a Transpose."""
    kinds = {use.node.op_type for use in weight.uses()}
    return {str(weight.name).removesuffix(".weight")} if kinds & {"Gather", "Transpose"} else set()


def _initializer(
    graph: ir.Graph, name: str, make: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, ...], parts: str
) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = lazy(make, dtype, shape, name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
    value.metadata_props[PARTS] = parts
    graph.register_initializer(value)
    return value


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
    quantized: dict[_Input, list[ir.Value]] = {}
    for node in by_type(graph, PRODUCT, "GridGather"):
        codes = node.inputs[1]
        assert codes is not None
        kind = node.attributes["activations"].as_string()
        if node.op_type == "GridGather":
            result, name = (_gather_blocks if kind == "float" else _gather_rows)(graph, node)
        elif kind == "float":
            result, name = _matmul_nbits(graph, node)
        else:
            make = _dynamic if kind == "dynamic" else partial(_static, signed=signed)
            result, name = make(graph, node, quantized)
        stored[name] = codes.metadata_props[PARTS].split(",")
        replace(node.outputs[0], result)
        graph.remove(node, safe=True)
    if stored:
        graph.opset_imports.setdefault("com.microsoft", 1)
    return stored


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes [..., n] packed along the last axis, low bits first: [..., ⌈n · bits / 8⌉]."""
    per_byte = 8 // bits
    missing = -codes.shape[-1] % per_byte
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    parts = padded.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts << shifts, axis=-1).astype(np.uint8)
    return packed


def _derived(
    graph: ir.Graph, like: ir.Value, leaf: str, make: Callable[[Array], Array], dtype: ir.DataType, shape: Any
) -> ir.Value:
    """Return an initializer that is `make` of another one's contents."""
    source = like.const_value
    assert source is not None
    name = f"{str(like.name).rpartition('.')[0]}.{leaf}"
    return _initializer(graph, name, lambda: make(source.numpy()), dtype, tuple(shape), like.metadata_props[PARTS])


def _matmul_nbits(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, str]:
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

    packed = _derived(graph, codes, "weight_packed", blocks, ir.DataType.UINT8, (outputs, groups, size * bits // 8))
    if zero is None:
        return packed, scale, None
    shape = (outputs, -(-groups * bits // 8))
    points = _derived(graph, zero, "weight_zero_packed", lambda z: pack_bits(z, bits), ir.DataType.UINT8, shape)
    return packed, scale, points


def _gather_blocks(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, str]:
    inputs, outputs = node.attributes["K"].as_int(), node.attributes["N"].as_int()
    bits, size = node.attributes["bits"].as_int(), node.attributes["group_size"].as_int()
    packed, scale, zero = _block_tensors(graph, node, inputs, outputs)
    # A tied head reads the same codes in blocks; ONNX Runtime folds this reshape when the session starts.
    width = -(-inputs // size) * size * bits // 8
    shape = _constant(graph, "grid.flat_rows", np.asarray([outputs, width], np.int64))
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
        ends = [_constant(graph, f"grid.{n}", np.asarray([v], np.int64)) for n, v in (("from", 0), ("axis", -1))]
        stop = _constant(graph, f"grid.to_{inputs}", np.asarray([inputs], np.int64))
        result = new_node(node, "Slice", [result, ends[0], stop, ends[1]]).outputs[0]
    return result, str(packed.name)


def _signed(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the codes as signed bytes [outputs, inputs]; symmetric 8-bit grids alone have them."""
    codes = node.inputs[1]
    assert codes is not None
    shape = sizes(codes.shape)
    return _derived(graph, codes, "weight_int8", _to_signed, ir.DataType.INT8, shape)


def _in_rows(graph: ir.Graph, node: ir.Node) -> bool:
    """Tell whether an embedding holds the same codes, stored by rows: the runtime transposes them when it loads."""
    codes = _present(node.inputs[1])
    shared = any(use.node.op_type == "GridGather" for use in codes.uses())
    return shared or any(use.node.op_type == "Gather" for use in _present(node.inputs[2]).uses())


def _signed_columns(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the codes as signed bytes [inputs, outputs]."""
    if _in_rows(graph, node):
        return new_node(node, "Transpose", [_signed(graph, node)], perm=[1, 0]).outputs[0]
    codes = _present(node.inputs[1])
    outputs, inputs = sizes(codes.shape)
    return _derived(graph, codes, "weight_int8", lambda c: _to_signed(c).T, ir.DataType.INT8, (inputs, outputs))


def _to_signed(codes: Array) -> Array:
    return (codes.astype(np.int16) - 128).astype(np.int8)


def _name_of(value: ir.Value, leaf: str) -> str:
    return f"{str(value.name).rpartition('.')[0]}.{leaf}"


def _scales(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the outputs' scales [outputs]: of a grid with factors, those of its first input, whose factor is 1."""
    scale = _present(node.inputs[2])
    shape = (sizes(scale.shape)[0],)
    if _in_rows(graph, node):
        flat = _constant(graph, "grid.flat", np.asarray([-1], np.int64))
        return new_node(node, "Reshape", [scale, flat]).outputs[0]
    return _derived(graph, scale, "weight_scales", lambda s: s[:, 0], ir.DataType.FLOAT, shape)


def _gather_rows(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, str]:
    """Look up bytes and their rows' scales: as precise as a scale per row, and nothing but rows is widened."""
    codes, scale = _signed(graph, node), node.inputs[2]
    rows = new_node(node, "Gather", [codes, node.inputs[0]], axis=0).outputs[0]
    factors = new_node(node, "Gather", [scale, node.inputs[0]], axis=0).outputs[0]
    wide = new_node(node, "Cast", [rows], to=int(ir.DataType.FLOAT)).outputs[0]
    return new_node(node, "Mul", [wide, factors]).outputs[0], str(codes.name)


def _input(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, _Input]:
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


def _multiplied(graph: ir.Graph, node: ir.Node, source: ir.Value, key: _Input) -> ir.Value:
    """Return `source`, multiplied by the factors of a product's grid where it has any."""
    if key[-1] is None:
        return source
    wide = np.frombuffer(key[-1], np.float32)
    with np.errstate(over="ignore"):
        short = wide.astype(np.float16)
    exact = np.array_equal(short, wide)
    factors = _constant(graph, _name_of(_present(node.inputs[2]), "input_factors"), short if exact else wide)
    if exact:  # powers of two: half the bytes on disk, widened when the session starts
        factors = new_node(node, "Cast", [factors], to=int(ir.DataType.FLOAT)).outputs[0]
    return new_node(node, "Mul", [source, factors]).outputs[0]


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _stem(graph: ir.Graph, node: ir.Node) -> str:
    return str(_present(node.inputs[1]).name).rpartition(".")[0]


def _dynamic(graph: ir.Graph, node: ir.Node, quantized: dict[_Input, list[ir.Value]]) -> tuple[ir.Value, str]:
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


def _static(
    graph: ir.Graph, node: ir.Node, quantized: dict[_Input, list[ir.Value]], *, signed: bool
) -> tuple[ir.Value, str]:
    source, key = _input(graph, node)
    stem = _stem(graph, node)
    # ONNX Runtime makes a Gemm of a product of rank 2 and its bias, and then leaves it in float.
    flat = source.shape is not None and len(source.shape) == 2
    axis = _constant(graph, "grid.first", np.asarray([0], np.int64)) if flat else None
    if key not in quantized:
        read = _multiplied(graph, node, source, key)
        read = new_node(node, "Unsqueeze", [read, axis]).outputs[0] if flat else read
        scale = _constant(graph, f"{stem}.input_scale", np.float32(key[1]))
        point = np.int8(key[2] - 128) if signed else np.uint8(key[2])
        zero = _constant(graph, f"{stem}.input_zero_point", point)
        codes = new_node(node, "QuantizeLinear", [read, scale, zero]).outputs[0]
        quantized[key] = [new_node(node, "DequantizeLinear", [codes, scale, zero]).outputs[0]]
    weight = _signed_columns(graph, node)
    count = node.attributes["N"].as_int()
    # One for each product: ONNX Runtime's transformers of weights fail on a zero point that two share.
    zeros = _constant(graph, f"{stem}.weight_zeros", np.zeros(count, np.int8))
    wide = new_node(node, "DequantizeLinear", [weight, _scales(graph, node), zeros], axis=1).outputs[0]
    result = new_node(node, "MatMul", [quantized[key][0], wide]).outputs[0]
    result = new_node(node, "Squeeze", [result, axis]).outputs[0] if flat else result
    return result, f"{stem}.weight_int8"


def _constant(graph: ir.Graph, name: str, numbers: Any) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    array = np.asarray(numbers)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
