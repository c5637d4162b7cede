"""Whether `model.ort` is what its `model.onnx` converts to: the same weights, and the same outputs on the probes.

All other checks look at the ONNX graph; these tie `model.ort`, which is what runs, to it. They hold on any processor,
unlike a comparison of bytes with a second conversion.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import ModelError
from compressor.measure.onnx_runner import OnnxRunner, imitation
from compressor.measure.runner import Runner
from compressor.storage.artifact import ORT_MODEL
from compressor.storage.processor import target_of_folder
from compressor.verification.reference import check_reference, write_reference
from compressor.verification.verdict import Check, failed, yes
from compressor.verification.weights import StoredWeights

_SIGNED = ("session.qdqisint8allowed",)
"""Settings with which graphs for ARM are converted: products of signed bytes stay such."""


def check_ort(weights: StoredWeights, runner: Runner, threads: int) -> list[Check]:
    """Compare a folder's `model.ort` with its `model.onnx`; nothing where there is no such file.

    Args:
        weights: of the ONNX graph.
        runner: the loaded `model.ort`.
        threads: of the ONNX session that it is compared with.
    """
    if not weights.is_onnx or not (weights.folder / ORT_MODEL).is_file():
        return []
    try:
        checks = [_check_weights(weights)]
        if imitation(weights.folder):  # `runner` is not `model.ort` then
            runner = OnnxRunner(weights.folder, threads, settings=())
        signed = _SIGNED if target_of_folder(weights.folder) == "arm64" else ()
        graph = OnnxRunner(weights.folder, threads, graph=weights.model.SerializeToString(), settings=signed)
        with tempfile.TemporaryDirectory(prefix="compressor-ort-") as folder:
            expected = Path(folder) / "reference.safetensors"
            write_reference(graph, expected, companions=False)
            return checks + check_reference(runner, expected, "float32", group="parity.ort")
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        return [failed("parity.ort", error)]


def _check_weights(weights: StoredWeights) -> Check:
    """Compare the weights that keep their names; an error in those that conversion folds shows in the outputs."""
    kept, wrong = 0, []
    for name, raw in _initializers(weights.folder / ORT_MODEL):
        original = weights.initializer(name)
        if original is not None:
            kept += 1
            if original.tobytes() != raw.tobytes():
                wrong.append(name)
    reason = f"weights of {ORT_MODEL} differ from those of model.onnx: {', '.join(wrong[:4])}"
    return yes("weights.ort", not wrong, reason, value=kept)


def _initializers(path: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the name and the bytes of every weight in a `.ort` file.

    Raises:
        ModelError: the file is not in that format.
    """
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    data = bytearray(path.read_bytes())
    if not InferenceSession.InferenceSessionBufferHasIdentifier(data, 0):
        raise ModelError(f"{path.name} is not a model in ONNX Runtime's format")
    graph: Any = InferenceSession.GetRootAsInferenceSession(data, 0).Model().Graph()
    for index in range(graph.InitializersLength()):
        tensor = graph.Initializers(index)
        if tensor.RawDataLength():
            yield tensor.Name().decode(), tensor.RawDataAsNumpy()
