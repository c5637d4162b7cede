"""The precision of an artifact, as its graph or its stored tensors have it, against the one that its manifest states.

The stated precision chooses the tolerance of the probes and which checks of quantized weights there are, so it is not
taken on trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from compressor._lazy import lazy
from compressor.model.folder import open_model
from compressor.storage.grids import precision_of
from compressor.verification.verdict import Check, yes
from compressor.verification.weights import FLOATS, StoredWeights

onnx = lazy("onnx")

_CODED = ("MatMulNBits", "GatherBlockQuantized")


def check_precision(manifest: Mapping[str, Any], weights: StoredWeights) -> list[Check]:
    """Check that the manifest states the precision of what is stored.

    Raises:
        ModelError: config.json of a quantized checkpoint cannot be read.
    """
    stated, found = str(manifest.get("precision", "float32")), found_precision(weights)
    what = "the graph" if weights.is_onnx else "the checkpoint"
    reason = f"compression.json states {stated}, but {what} is {'quantized to ' * found.startswith('int')}{found}"
    return [yes("precision.stated", stated == found, reason)]


def found_precision(weights: StoredWeights) -> str:
    """Return the precision of a graph or of a checkpoint, by the names that the manifest uses.

    Raises:
        ModelError: config.json of a quantized checkpoint cannot be read.
    """
    if not weights.quantized:
        return _float_type(weights)
    if not weights.is_onnx:
        return precision_of(open_model(weights.folder).grids, _float_type(weights))
    nodes = weights.model.graph.node
    operators = {node.op_type for node in nodes}
    if operators & {"DynamicQuantizeLinear", "MatMulInteger"}:
        return "int8-dynamic"
    stored = {tensor.name for tensor in weights.model.graph.initializer}
    if any(node.op_type == "QuantizeLinear" and node.input[0] not in stored for node in nodes):
        return "int8-static"
    bits = [a.i for node in nodes if node.op_type in _CODED for a in node.attribute if a.name == "bits"]
    return "int8-weights" if min(bits, default=4) == 8 else "int4"


def _float_type(weights: StoredWeights) -> str:
    """Return the type of most floating-point weights."""
    sizes: Counter[str] = Counter()
    for dtype, *shape in weights.table().values():
        if dtype in FLOATS:
            sizes[dtype] += _product(shape)
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total
