"""Exporter correctness of quantized graphs: no activation rounded, at the float32 gate.

At accuracy level 4 MatMulNBits rounds a block's inputs to 8 bits, and integer products round theirs; the artifact then
differs from the torch-side model by more than an exporter's mistake might, or a damaged bias. On a copy of the graph in
which products take their inputs as they come, the probes must agree as a float export's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor._lazy import lazy
from compressor.measure.onnx_runner import OnnxRunner
from compressor.verification.reference import check_reference
from compressor.verification.verdict import Check, failed, yes
from compressor.verification.weights import StoredWeights

onnx = lazy("onnx")
LEVELS = "accuracy_levels"
WEIGHT_ONLY = ("int4", "int8-weights")


def check_exact(weights: StoredWeights, reference: Path, precision: str, threads: int) -> list[Check]:
    """Check the probes on a copy of the graph, in memory, that rounds no activation: `parity.exact.*`.

    External weights are read from where they lie.
    """
    if not precision.startswith("int") or not weights.is_onnx:
        return []
    try:
        runner = OnnxRunner(weights.folder, threads, graph=without_rounding(weights.model).SerializeToString())
    except Exception as error:  # an unloadable graph must become a verdict, whatever a library raises
        return [failed("parity.exact", error)]
    return check_reference(runner, reference, "float32", group="parity.exact")


def without_rounding(model: Any) -> Any:
    """Return a copy of a graph whose products, integer ones too, take float inputs that nothing has rounded.

    QuantizeLinear and DequantizeLinear of an activation go; MatMulInteger becomes MatMul of the widened codes, and the
    input's scale leaves the factor behind it.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    stored = {tensor.name for tensor in copy.graph.initializer}
    instead: dict[str, str] = {}
    nodes = []
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        rounds = node.op_type == "QuantizeLinear" and node.input[0] not in stored
        if rounds or (node.op_type == "DequantizeLinear" and node.input[0] in instead.values()):
            instead[node.output[0]] = node.input[0]
        elif node.op_type == "DynamicQuantizeLinear":
            instead |= {node.output[0]: node.input[0], node.output[1]: ""}
        else:
            nodes += _floats(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _floats(node: Any) -> list[Any]:
    """Return what stands for a node where activations are not rounded."""
    if node.op_type == "MatMulInteger":
        wide = f"{node.output[0]}.codes"
        return [
            onnx.helper.make_node("Cast", [node.input[1]], [wide], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("MatMul", [node.input[0], wide], node.output),
        ]
    if node.op_type == "DequantizeLinear":
        # Spelt out: of DequantizeLinear and MatMul, ONNX Runtime makes a product that rounds its input again.
        names = [f"{node.output[0]}.{part}" for part in ("codes", "zero", "centred")]
        return [
            *(onnx.helper.make_node("Cast", [n], [wide], to=onnx.TensorProto.FLOAT)
              for n, wide in ((node.input[0], names[0]), (node.input[2], names[1]))),
            onnx.helper.make_node("Sub", names[:2], names[2:]),
            onnx.helper.make_node("Mul", [names[2], node.input[1]], node.output),
        ]  # fmt: skip
    if node.op_type == "Mul" and "" in node.input:
        (kept,) = [name for name in node.input if name]
        return [onnx.helper.make_node("Identity", [kept], node.output)]
    for attribute in node.attribute:
        if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
            attribute.i = 0
    return [node]


def check_levels(weights: StoredWeights, manifest: Mapping[str, Any]) -> list[Check]:
    """Check that every product runs at the accuracy level that was chosen for it."""
    if not weights.is_onnx:
        return []
    found = {
        node.input[1]: next((a.i for a in node.attribute if a.name == "accuracy_level"), 0)
        for node in weights.model.graph.node
        if node.op_type == "MatMulNBits"
    }
    if not found:
        return []
    recorded = manifest.get(LEVELS) or {}
    names = sorted(name for name, level in found.items() if level != recorded.get(name))
    shown = names[0] if names else ""
    reason = (
        f"{shown} runs at accuracy level {found.get(shown)}, chosen was {recorded.get(shown)} ({len(names)} differ)"
    )
    return [yes("weights.accuracy_level", not names, reason)]
