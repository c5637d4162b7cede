"""The operators in terms of standard ONNX operators: function bodies, for where the library is not registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

DOMAIN = "compressor"
"""Domain of the operators."""
KINDS = {"": "f32, f16 and bf16", "Int8": "int8", "Int4": "int4"}
"""Ending of an operator's name -> the formats of its weights."""


def operator(name: str, format: str) -> str:
    """Return the operator's full name: `RowSkipMatMul` or `SparseGatedMLP`, and the ending for a weight's format."""
    return name + {"int8": "Int8", "int4": "Int4"}.get(format, "")


def function_bodies(opset: int = 21) -> list[FunctionProto]:
    """Return the bodies of all operators, for `ModelProto.functions`.

    Args:
        opset: version of the standard operators that the model imports; 18 or newer.

    Raises:
        ValueError: an older opset.
    """
    if opset < 18:
        raise ValueError(f"opset {opset}: 18 or newer is needed (BitwiseAnd)")
    return [make(kind, opset) for kind in KINDS for make in (_row_skip, _gated_mlp)]


def _row_skip(kind: str, opset: int) -> FunctionProto:
    nodes = [
        *_masked("X", "X", "kept"),
        *_weight(kind, "W", "N"),
        _node("MatMul", ["kept", "W_values"], ["Y"]),
    ]
    return _function("RowSkipMatMul", kind, ["X", *_inputs(kind, "W"), "T"], nodes, opset)


def _gated_mlp(kind: str, opset: int) -> FunctionProto:
    inputs = ["X", "G", *_inputs(kind, "W_up"), *_inputs(kind, "W_down"), "T"]
    width = [_node("Shape", ["X"], ["K"], start=-1)] if kind else []
    nodes = [
        *width,
        *_weight(kind, "W_up", "K"),
        *_weight(kind, "W_down", "N"),
        _node("Transpose", ["W_up_values"], ["W_up_transposed"], perm=[1, 0]),
        _node("MatMul", ["X", "W_up_transposed"], ["up"]),
        _node("Mul", ["G", "up"], ["product"]),
        *_masked("G", "product", "hidden"),
        _node("MatMul", ["hidden", "W_down_values"], ["Y"]),
    ]
    return _function("SparseGatedMLP", kind, inputs, nodes, opset)


def _inputs(kind: str, weight: str) -> list[str]:
    return [weight, f"{weight}_scale", f"{weight}_zero"] if kind else [weight]


def _masked(tested: str, value: str, result: str) -> list[NodeProto]:
    """Nodes of: result = value where not |tested| <= T, else 0."""
    return [
        _node("Abs", [tested], ["magnitude"]),
        _node("LessOrEqual", ["magnitude", "T"], ["silent"]),
        _node("Not", ["silent"], ["loud"]),
        _node("Constant", [], ["nothing"], value_float=0.0),
        _node("Where", ["loud", value, "nothing"], [result]),
    ]


def _weight(kind: str, name: str, columns: str) -> list[NodeProto]:
    """Nodes that give the values of a weight, [rows, columns], as `{name}_values`."""
    if not kind:
        return [_node("Cast", [name], [f"{name}_values"], to=1)]
    codes = [] if kind == "Int8" else _nibbles(name)
    made = [*codes, _node("Cast", [name if kind == "Int8" else f"{name}_codes"], [f"{name}_floats"], to=1)]
    made += [
        _ints(f"{name}_last", [-1]),
        _node("Cast", [f"{name}_zero"], [f"{name}_points"], to=1),
        _node("Unsqueeze", [f"{name}_points", f"{name}_last"], [f"{name}_point"]),
        _node("Unsqueeze", [f"{name}_scale", f"{name}_last"], [f"{name}_step"]),
        _node("Sub", [f"{name}_floats", f"{name}_point"], [f"{name}_steps"]),
        _node("Mul", [f"{name}_steps", f"{name}_step"], [f"{name}_blocks"]),
        _ints(f"{name}_flat", [0, -1]),
        _node("Reshape", [f"{name}_blocks", f"{name}_flat"], [f"{name}_padded"]),
        _ints(f"{name}_first", [0]),
        _node("Slice", [f"{name}_padded", f"{name}_first", columns, f"{name}_last"], [f"{name}_values"]),
    ]
    return made


def _nibbles(name: str) -> list[NodeProto]:
    """Nodes that take the two codes out of each byte: [rows, blocks, 16] -> [rows, blocks, 32]."""
    import onnx

    def byte(value: int) -> Any:
        return onnx.helper.make_tensor("", onnx.TensorProto.UINT8, [1], [value])

    return [
        _node("Constant", [], [f"{name}_mask"], value=byte(15)),
        _node("Constant", [], [f"{name}_four"], value=byte(4)),
        _ints(f"{name}_pairs", [-1]),
        _node("BitwiseAnd", [name, f"{name}_mask"], [f"{name}_even"]),
        _node("BitShift", [name, f"{name}_four"], [f"{name}_odd"], direction="RIGHT"),
        _node("Unsqueeze", [f"{name}_even", f"{name}_pairs"], [f"{name}_low"]),
        _node("Unsqueeze", [f"{name}_odd", f"{name}_pairs"], [f"{name}_high"]),
        _node("Concat", [f"{name}_low", f"{name}_high"], [f"{name}_both"], axis=-1),
        _ints(f"{name}_rows", [0, 0, -1]),
        _node("Reshape", [f"{name}_both", f"{name}_rows"], [f"{name}_codes"]),
    ]


def _ints(name: str, values: Sequence[int]) -> NodeProto:
    return _node("Constant", [], [name], value_ints=list(values))


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    import onnx

    return onnx.helper.make_node(kind, inputs, outputs, **attributes)


def _function(name: str, kind: str, inputs: list[str], nodes: list[NodeProto], opset: int) -> FunctionProto:
    import onnx

    attributes = []
    if kind:
        # [N] as a tensor, from the attribute of the node that calls the function.
        columns = onnx.helper.make_node("Constant", [], ["N_scalar"])
        columns.attribute.append(onnx.AttributeProto(name="value_int", ref_attr_name="N", type=onnx.AttributeProto.INT))
        vector = [_ints("N_shape", [1]), _node("Reshape", ["N_scalar", "N_shape"], ["N"])]
        nodes, attributes = [columns, *vector, *nodes], ["N"]
    opsets = [onnx.helper.make_opsetid("", opset)]
    made = onnx.helper.make_function(
        DOMAIN, name + kind, inputs, ["Y"], nodes, opsets, attributes,
        attribute_protos=[onnx.helper.make_attribute("dense_from", 0)],
        doc_string=f"{name} with weights in {KINDS[kind]}; the library compressor-kernels computes it without reading "
        "the rows of silent neurons.",
    )  # fmt: skip
    return made
