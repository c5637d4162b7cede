"""Whether a graph is valid ONNX, or a safetensors folder a loadable model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from compressor._lazy import lazy
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.runner import Runner
from compressor.measure.torch_runner import TorchRunner
from compressor.storage.artifact import runtime_model
from compressor.verification.verdict import Check, failed, yes
from compressor.verification.weights import StoredWeights

onnx = lazy("onnx")

_CONTRIB_NORMS = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}
"""Operators of ONNX Runtime that live in the default domain there; the ONNX checker does not know them."""


def check_graph(weights: StoredWeights) -> list[Check]:
    """Run the ONNX checker and strict shape inference on a copy of the graph without weight data."""
    copy = checked_copy(weights.model)
    checks = []
    runs: dict[str, Callable[[], Any]] = {
        "graph.checker": lambda: onnx.checker.check_model(copy, full_check=False),
        "graph.inference": lambda: onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True),
    }
    for name, run in runs.items():
        try:
            run()
            checks.append(yes(name, True, ""))
        except Exception as error:  # onnx raises ValidationError, InferenceError, ValueError, TypeError, ...
            checks.append(failed(name, error))
    return checks


def checked_copy(model: Any) -> Any:
    """Return a copy for the checker: runtime operators in a domain of their own, external weights as inputs.

    Without the second change the checker would look for the weight file in the current directory, and a model of more
    than 2 GB could not be checked in memory at all.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    relabelled = [node for node in _nodes(copy.graph) if node.domain == "" and node.op_type in _CONTRIB_NORMS]
    for node in relabelled:
        node.domain = "com.microsoft"
    if relabelled and not any(opset.domain == "com.microsoft" for opset in copy.opset_import):
        copy.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    external = [t for t in copy.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        copy.graph.initializer.remove(tensor)
    return copy


def open_checked(folder: Path, threads: int) -> tuple[Runner | None, Check]:
    """Load the artifact in its own runtime; return it, or None, and the check that says so."""
    is_onnx = runtime_model(folder) is not None
    name = "graph.session" if is_onnx else "model.loads"
    try:
        runner: Runner = OnnxRunner(folder, threads) if is_onnx else TorchRunner(folder, threads)
        return runner, yes(name, True, "")
    except Exception as error:  # an unloadable file must become a verdict, whatever a library raises
        return None, failed(name, error)


def _nodes(graph: Any) -> Iterable[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(inner)
