"""Exporter correctness of weight-only quantization: the graph without rounding of activations, at the float32 gate.

At accuracy level 4, MatMulNBits rounds a block's inputs to 8 bits, and the artifact differs from the torch-side model
by more than an exporter's mistake might. At level 0 it does not: there the probes must agree as a float export's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.runners import OnnxRunner
from compressor.verification.reference import check_reference
from compressor.verification.verdict import Check, failed, yes
from compressor.verification.weights import StoredWeights

LEVELS = "accuracy_levels"
WEIGHT_ONLY = ("int4", "int8-weights")


def check_exact(weights: StoredWeights, reference: Path, precision: str, threads: int) -> list[Check]:
    """Check the probes on a copy of the graph, in memory, with accuracy level 0: `parity.exact.*`.

    External weights are read from where they lie.
    """
    if precision not in WEIGHT_ONLY or not weights.is_onnx:
        return []
    try:
        runner = OnnxRunner(weights.folder, threads, graph=_at_level_0(weights.model).SerializeToString())
    except Exception as error:  # an unloadable graph must become a verdict, whatever a library raises
        return [failed("parity.exact", error)]
    return check_reference(runner, reference, "float32", group="parity.exact")


def _at_level_0(model: Any) -> Any:
    copy = type(model)()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
    return copy


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
