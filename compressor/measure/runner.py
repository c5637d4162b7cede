"""One face for PyTorch and ONNX Runtime: numpy in, numpy out, a fixed number of threads, CPU.

Decoders take `input_ids` and `attention_mask` and return logits [B, T, V]; their key-value cache is an opaque object
that `extend` returns and takes back. Encoders return `last_hidden_state` [B, T, H], classifiers logits [B, C].
`attention_mask` and `token_type_ids` are filled in (ones, zeros) when a model needs them and they are not given.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from compressor._lazy import lazy
from compressor.architectures.tasks import TASKS, stated_task
from compressor.data.kinds import Ids, Inputs
from compressor.errors import ModelError, UsageError

ort = lazy("onnxruntime")
torch = lazy("torch")
transformers = lazy("transformers")

Array: TypeAlias = NDArray[np.float32]
Past: TypeAlias = Any
"""A runner's own key-value cache: made by `extend`, read by nobody else."""

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
ORT_MODEL, ONNX_MODEL = "model.ort", "model.onnx"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class Runner(Protocol):
    """A loaded model that can be evaluated and timed.

    Attributes:
        folder: where it was loaded from.
        task: a name in `compressor.architectures.tasks.TASKS`.
        left_padding: whether a decoder gives right results for left-padded batches.
    """

    @property
    def folder(self) -> Path: ...  # noqa: D102

    @property
    def task(self) -> str: ...  # noqa: D102

    @property
    def left_padding(self) -> bool: ...  # noqa: D102

    def forward(self, inputs: Inputs) -> Array:
        """Return logits [B, T, V] or [B, C], or the last hidden state [B, T, H]."""

    def extend(self, inputs: Inputs, past: Past | None = None) -> tuple[Array, Past]:
        """Run a decoder on tokens [B, S] after `past`; the mask covers past and new tokens [B, P + S].

        Returns:
            Logits [B, S, V] and the cache that now covers P + S positions.
        """

    def generate(self, ids: Ids, new_tokens: int) -> Ids:
        """Return the `new_tokens` [B, new_tokens] that greedy decoding appends to unpadded `ids` [B, T]."""


class OnnxRunner:
    """A folder's `model.ort` or `model.onnx` in a plain ONNX Runtime session."""

    def __init__(self, folder: Path, threads: int = 1, graph: bytes | None = None) -> None:
        """Open the session; `graph` stands for what is in the file, its external data are those of the folder.

        Raises:
            ModelError: there is no such file, or ONNX Runtime refuses it.
        """
        self.folder = Path(folder)
        path = runtime_model(self.folder)
        if path is None:
            raise ModelError(f"{self.folder}: no model.onnx there", hint="Export the model to ONNX first.")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        if graph is not None:
            options.add_session_config_entry(_DATA_FOLDER, str(self.folder))
        try:
            self._session = ort.InferenceSession(graph or str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        self._inputs: dict[str, Any] = {i.name: i for i in self._session.get_inputs()}
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        outputs = [o.name for o in self._session.get_outputs()]
        self._output = next((n for n in ("logits", "last_hidden_state") if n in outputs), outputs[0])
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        if missing := [name for name in self._present if name not in outputs]:
            raise ModelError(f"{path}: the graph takes a cache but does not return {missing[0]}")
        self.task = self._guess_task()
        self.left_padding = "position_ids" in self._inputs

    def _guess_task(self) -> str:
        if self._past or (self.folder / "genai_config.json").is_file():
            return "text-generation"
        if "pixel_values" in self._inputs:
            return "image-classification"
        return "feature-extraction" if self._output == "last_hidden_state" else "text-classification"

    def forward(self, inputs: Inputs) -> Array:
        """Return logits [B, T, V] or [B, C], or the last hidden state [B, T, H]."""
        return self._run(inputs, self._empty_past(inputs), [self._output])[0]

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
        given = complete(inputs, set(self._inputs), past=past[0].shape[2] if past else 0)
        given.update(zip(self._past, past, strict=True))
        if missing := sorted(set(self._inputs) - set(given)):
            raise UsageError(f"{self.folder}: the graph needs the input {missing[0]}, got {sorted(inputs)}")
        feed = {k: np.ascontiguousarray(given[k], dtype=_DTYPES.get(v.type)) for k, v in self._inputs.items()}
        first, *rest = self._session.run(outputs, feed)
        return [np.asarray(first, dtype=np.float32), *rest]


class TorchRunner:
    """A model folder in PyTorch: stock `AutoModel...`, or `compressor.load` for per-layer shapes."""

    def __init__(self, folder: Path, threads: int = 1, model: Any = None) -> None:
        """Load the folder in float32, or take `model` (a module already in memory, set to eval mode).

        Raises:
            ModelError: the folder cannot be loaded.
        """
        self.folder = Path(folder)
        self._threads = threads
        self._model = (load_torch(self.folder) if model is None else model).eval()
        names = {"architectures": [type(model).__name__]} if model is not None else read_config(self.folder)
        self.task = task_of(names)
        self.left_padding = True
        accepted = inspect.signature(self._model.forward).parameters
        self._accepted = {n for n in accepted if n not in ("labels", "inputs_embeds")}
        if not getattr(self._model.config, "type_vocab_size", 0):
            self._accepted.discard("token_type_ids")

    def forward(self, inputs: Inputs) -> Array:
        """Return logits [B, T, V] or [B, C], or the last hidden state [B, T, H]."""
        out = self._call(inputs, 0, use_cache=False) if self.task == "text-generation" else self._call(inputs, 0)
        return _numpy(out.logits if "logits" in out else out.last_hidden_state)

    def extend(self, inputs: Inputs, past: Past | None = None) -> tuple[Array, Past]:
        """Run tokens [B, S] after `past` (see `Runner.extend`)."""
        if self.task != "text-generation":
            raise UsageError(f"{self.folder}: a model for {self.task} has no key-value cache")
        length = 0 if past is None else past.get_seq_length()
        out = self._call(inputs, length, use_cache=True, past_key_values=past)
        return _numpy(out.logits), out.past_key_values

    def generate(self, ids: Ids, new_tokens: int) -> Ids:
        """Return the greedily decoded continuation [B, new_tokens] of `ids` [B, T]."""
        return greedy(self, ids, new_tokens)

    def _call(self, inputs: Inputs, past: int, **options: Any) -> Any:
        torch.set_num_threads(self._threads)
        wanted = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "pixel_values"} & self._accepted
        if self.task != "text-generation":
            wanted.discard("position_ids")
        feed = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in complete(inputs, wanted, past=past).items()}
        with torch.inference_mode():
            return self._model(**feed, **options)


def open_runner(folder: Path, threads: int = 1) -> Runner:
    """Return an `OnnxRunner` when the folder holds a graph, else a `TorchRunner`."""
    folder = Path(folder)
    return OnnxRunner(folder, threads) if runtime_model(folder) is not None else TorchRunner(folder, threads)


def runtime_model(folder: Path) -> Path | None:
    """Return the file that ONNX Runtime is to load: `model.ort` before `model.onnx`; None without either."""
    return next((folder / name for name in (ORT_MODEL, ONNX_MODEL) if (folder / name).is_file()), None)


def complete(inputs: Inputs, wanted: set[str], past: int = 0) -> Inputs:
    """Keep the inputs that a model wants and add mask, positions and token types that it needs.

    Positions count the unmasked tokens of a row, so they are right for padding on either side.
    """
    given = {name: value for name, value in inputs.items() if name in wanted}
    if "input_ids" not in inputs:
        return given
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = np.ones((ids.shape[0], past + ids.shape[1]), np.int64)
    if "attention_mask" in wanted:
        given["attention_mask"] = mask
    if "position_ids" in wanted and "position_ids" not in given:
        positions = np.maximum(mask.astype(np.int64).cumsum(axis=1) - 1, 0)
        given["position_ids"] = positions[:, -ids.shape[1] :]
    if "token_type_ids" in wanted and "token_type_ids" not in given:
        given["token_type_ids"] = np.zeros_like(ids)
    return given


def greedy(runner: Runner, ids: Ids, new_tokens: int) -> Ids:
    """Return the `new_tokens` most likely tokens [B, new_tokens] after unpadded `ids` [B, T], one at a time."""
    made: list[Ids] = []
    step: Ids = ids.astype(np.int64)
    past: Past | None = None
    for count in range(new_tokens):
        mask = np.ones((ids.shape[0], ids.shape[1] + count), np.int64)
        logits, past = runner.extend({"input_ids": step, "attention_mask": mask}, past)
        step = logits[:, -1].argmax(axis=-1)[:, None].astype(np.int64)
        made.append(step)
    return np.concatenate(made, axis=1) if made else np.zeros((ids.shape[0], 0), np.int64)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json.

    Raises:
        ModelError: it is missing or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder}: no config.json there", hint="A model folder holds config.json.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: holds a {type(config).__name__}, not an object")
    return config


def task_of(config: dict[str, Any]) -> str:
    """Return the task that the class named in `architectures` serves; an encoder body has none of its own."""
    name = str((config.get("architectures") or [""])[0])
    return stated_task([name]) or "feature-extraction"


def load_torch(folder: Path) -> Any:
    """Load a model folder in float32: our loader for per-layer shapes, stock transformers for all others.

    Stock transformers reads quantized weights with the library compressed-tensors. Where that is not installed, our
    loader does, to the same bits; products in 8-bit integers need the library.

    Raises:
        ModelError: the folder cannot be loaded, or weights are missing from it or left over.
    """
    config = read_config(folder)
    if "compression" in config or ("quantization_config" in config and not _library(config)):
        from compressor.model.folder import load

        return load(folder)
    auto = getattr(transformers, TASKS[task_of(config)].auto_class)
    try:
        with _quiet():
            model, info = auto.from_pretrained(
                str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True, use_safetensors=True
            )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, SafetensorError, ...
        raise ModelError(f"{folder}: transformers cannot load it: {_first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        # The pooler is no part of what an encoder returns here, and many checkpoints come without it.
        if names := [str(name) for name in sorted(info.get(kind) or []) if "pooler." not in str(name)]:
            raise ModelError(f"{folder}: {kind.replace('_', ' ')} in the weights: {names[0]} and {len(names) - 1} more")
    return model


def _library(config: dict[str, Any]) -> bool:
    """Tell whether compressed-tensors is installed.

    Raises:
        ModelError: it is not, and the model cannot do without it.
    """
    if importlib.util.find_spec("compressed_tensors") is not None:
        return True
    groups = config["quantization_config"].get("config_groups", {})
    if any(group.get("input_activations") for group in groups.values()):
        raise ModelError(
            "the model computes in 8-bit integers, for which compressed-tensors must be installed",
            hint="pip install 'compressor[compressed]'",
        )
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar and load report off stderr; what is wrong is raised, not logged."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _batch_of(inputs: Inputs) -> int:
    return int(next(iter(inputs.values())).shape[0])


def _numpy(tensor: Any) -> Array:
    return cast(Array, tensor.to(torch.float32).cpu().numpy())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
