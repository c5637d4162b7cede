"""ONNX Runtime behind the face of `compressor.measure.runner`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from compressor._lazy import lazy
from compressor.architectures import EMBEDDINGS, FAMILIES
from compressor.data.kinds import Ids, Inputs
from compressor.errors import ModelError, UsageError
from compressor.machine.processor import target_for
from compressor.machine.shortage import raise_shortage
from compressor.measure.runner import Array, Past, complete, first_line, greedy, read_config, stated_family
from compressor.storage.artifact import onnx_model, runtime_model
from compressor.storage.files import check_folder, own_file
from compressor.storage.processor import target_of_folder

ort = lazy("onnxruntime")

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
_HIDDEN = tuple(dict.fromkeys(family.output for family in FAMILIES))
_EMBEDS = "inputs_embeds"
_TEXT = "text_features"
"""A question that an image is seen for; there may be none."""
_EXACT = "session.x64quantprecision"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxRunner:
    """A folder's `model.ort` or `model.onnx` in a plain ONNX Runtime session."""

    def __init__(
        self, folder: Path, threads: int = 1, graph: bytes | None = None, *, settings: Sequence[str] | None = None
    ) -> None:
        """Open the session.

        Args:
            folder: of the model.
            threads: intra-op threads.
            graph: stands for what is in the file; its external data are those of the folder.
            settings: switches of the session; None for those under which this machine computes as the processor does
                that the artifact is for.

        Raises:
            ModelError: there is no such file, ONNX Runtime refuses it, or files of the folder are not its own.
        """
        self.folder = Path(folder)
        check_folder(self.folder)
        settings = imitation(self.folder) if settings is None else settings
        path = runtime_model(self.folder)
        if _EXACT in settings and path is not None and (found := onnx_model(self.folder)) is not None:
            path = found  # a `.ort` was optimised when it was made, and takes no such setting
        if path is None:
            raise ModelError(f"{self.folder}: no model.onnx there", hint="Export the model to ONNX first.")
        ort.disable_telemetry_events()  # for a process that had loaded ONNX Runtime before this package
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        for key in settings:
            options.add_session_config_entry(key, "1")
        if graph is not None:
            options.add_session_config_entry(_DATA_FOLDER, str(self.folder))
        try:
            self._session = ort.InferenceSession(graph or str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
            raise_shortage(error)
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
        self._inputs: dict[str, Any] = {i.name: i for i in self._session.get_inputs()}
        self._embedding = self._open_embedding(path, options)
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        outputs = [o.name for o in self._session.get_outputs()]
        self._output = next((n for n in ("logits", *_HIDDEN) if n in outputs), outputs[0])
        self.inputs = "pixels" if "pixel_values" in self._inputs else "tokens"
        self._pooled = next((name for name in _pooled_names(self.folder) if name in outputs), None)
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        if missing := [name for name in self._present if name not in outputs]:
            raise ModelError(f"{path}: the graph takes a cache but does not return {missing[0]}")
        self.task = self._guess_task()
        self.left_padding = "position_ids" in self._inputs

    def _guess_task(self) -> str:
        if self._past or (self.folder / "genai_config.json").is_file():
            return "text-generation"
        if self._output in _HIDDEN:
            return "feature-extraction"
        return "image-classification" if self.inputs == "pixels" else "text-classification"

    def _open_embedding(self, graph: Path, options: Any) -> Any:
        """Return the session of the graph that embeds tokens for this one; None where this one takes tokens.

        Raises:
            ModelError: there is none, or ONNX Runtime refuses it.
        """
        if _EMBEDS not in self._inputs:
            return None
        name = EMBEDDINGS.get(graph.name, "")
        path = own_file(self.folder, name) if name else None
        if path is None:
            raise ModelError(f"{graph}: it takes embeddings, and {name or 'a graph that makes them'} is not beside it")
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
            raise_shortage(error)
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error

    def embed(self, ids: Ids) -> Array:
        """Return the embeddings [B, T, width] of tokens [B, T], of a folder that makes them in a graph of their own."""
        assert self._embedding is not None, "asked of graphs that take embeddings"
        made = self._embedding.run(None, {"input_ids": np.ascontiguousarray(ids, dtype=np.int64)})[0]
        return np.asarray(made, dtype=np.float32)

    def forward(self, inputs: Inputs) -> Array:
        """Return logits [B, T, V] or [B, C], or the last hidden state [B, T, H]."""
        return self._run(inputs, self._empty_past(inputs), [self._output])[0]

    def pooled(self, inputs: Inputs) -> Array | None:
        """Return the embeddings [B, E] that an encoder makes of whole samples by itself; None where it makes none."""
        return None if self._pooled is None else self._run(inputs, [], [self._pooled])[0]

    def named(self, inputs: Inputs, names: list[str]) -> list[NDArray[Any]]:
        """Return outputs of the graph by their names, in the types that they have there; of a graph without a cache."""
        return [np.asarray(value) for value in self._session.run(names, self._feed(inputs, []))]

    def extend(self, inputs: Inputs, past: Past | None = None) -> tuple[Array, Past]:
        """Run tokens [B, S] after `past` (see `Runner.extend`)."""
        if not self._past:
            raise UsageError(f"{self.folder}: the graph has no key-value cache; only decoders can be extended")
        held = self._empty_past(inputs) if past is None else cast("list[NDArray[Any]]", past)
        logits, *present = self._run(inputs, held, [self._output, *self._present])
        return logits, present

    def generate(self, ids: Ids, new_tokens: int) -> Ids:
        """Return the greedily decoded continuation [B, new_tokens] of `ids` [B, T]."""
        return greedy(self, ids, new_tokens)

    def _empty_past(self, inputs: Inputs) -> list[NDArray[Any]]:
        if not self._past:
            return []
        batch = _batch_of(inputs)
        shapes = [self._inputs[name] for name in self._past]
        return [np.zeros((batch, s.shape[1], 0, s.shape[3]), _DTYPES[s.type]) for s in shapes]

    def _run(self, inputs: Inputs, past: list[NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
        first, *rest = self._session.run(outputs, self._feed(inputs, past))
        return [np.asarray(first, dtype=np.float32), *rest]

    def _feed(self, inputs: Inputs, past: list[NDArray[Any]]) -> Inputs:
        given = complete(inputs, set(self._inputs), past=past[0].shape[2] if past else 0)
        given.update(zip(self._past, past, strict=True))
        if self._embedding is not None and _EMBEDS not in given and "input_ids" in inputs:
            given[_EMBEDS] = self.embed(cast(Ids, inputs["input_ids"]))
        if _TEXT in self._inputs and _TEXT not in given:
            given[_TEXT] = np.zeros((_batch_of(inputs), 0, self._inputs[_TEXT].shape[2]), np.float32)
        if missing := sorted(set(self._inputs) - set(given)):
            raise UsageError(f"{self.folder}: the graph needs the input {missing[0]}, got {sorted(inputs)}")
        return {k: np.ascontiguousarray(given[k], dtype=_DTYPES.get(v.type)) for k, v in self._inputs.items()}


def _pooled_names(folder: Path) -> tuple[str, ...]:
    try:
        family = stated_family(read_config(folder))
    except ModelError:  # a graph alone is run, too
        return ()
    return family.pooled if family is not None else ()


def _batch_of(inputs: Inputs) -> int:
    return int(next(iter(inputs.values())).shape[0])


def imitation(folder: Path) -> list[str]:
    """Return the settings of a session that computes as the processor does that an artifact is for.

    x86 without VNNI would cut off what does not fit into 16 bits.
    """
    target, here = target_of_folder(folder), target_for("auto")
    return [_EXACT] if target not in (None, here) and here == "x86-avx2" else []
