"""PyTorch behind the face of `compressor.measure.runner`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from compressor._lazy import lazy
from compressor.architectures.tasks import RETURNED, TASKS
from compressor.data.kinds import Ids, Inputs
from compressor.errors import ModelError, UsageError, brief, summary
from compressor.machine.shortage import raise_shortage
from compressor.measure.runner import Array, Past, complete, greedy, read_config, stated_family, task_of
from compressor.model.image_size import call_options
from compressor.storage.files import check_folder

torch = lazy("torch")
transformers = lazy("transformers")

_EMBEDS = "inputs_embeds"


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
        self.inputs = "pixels" if self._model.main_input_name == "pixel_values" else "tokens"
        family = stated_family(self._model.config.to_dict())
        self._pooled = family.pooled if family is not None else ()
        accepted = inspect.signature(self._model.forward).parameters
        self._accepted = {n for n in accepted if n not in ("labels", _EMBEDS)}
        if not getattr(self._model.config, "type_vocab_size", 0):
            self._accepted.discard("token_type_ids")
        if family is not None and family.full_length:
            self._accepted.discard("attention_mask")

    @property
    def module(self) -> Any:
        """The torch module."""
        return self._model

    def forward(self, inputs: Inputs) -> Array:
        """Return logits [B, T, V] or [B, C], or the last hidden state [B, T, H]."""
        out = self._call(inputs, 0, use_cache=False) if self.task == "text-generation" else self._call(inputs, 0)
        return _numpy(out.logits if "logits" in out else out.last_hidden_state)

    def pooled(self, inputs: Inputs) -> Array | None:
        """Return the embeddings [B, E] that an encoder makes of whole samples by itself; None where it makes none."""
        if self.task == "text-generation" or not self._pooled:
            return None
        out = self._call(inputs, 0)
        return next((_numpy(out[name]) for name in self._pooled if out.get(name) is not None), None)

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

    def embed(self, ids: Ids) -> Array:
        """Return the embeddings [B, T, width] of tokens [B, T]."""
        with torch.inference_mode():
            return _numpy(self._model.get_input_embeddings()(torch.from_numpy(np.ascontiguousarray(ids))))

    def tables(self) -> dict[str, Array]:
        """Return the weights of the embeddings [rows, width] by parameter name: of tokens, positions, token types."""
        modules = self._model.named_modules()
        return {f"{name}.weight": _numpy(m.weight.detach()) for name, m in modules if isinstance(m, torch.nn.Embedding)}

    def _call(self, inputs: Inputs, past: int, **options: Any) -> Any:
        torch.set_num_threads(self._threads)
        names = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "pixel_values", "text_features"}
        wanted = names & self._accepted
        if self.task != "text-generation":
            wanted.discard("position_ids")
        given = complete(inputs, wanted, past=past)
        if _EMBEDS in inputs:  # they stand for the tokens, of which nothing but the number counts then
            given = {**{k: v for k, v in given.items() if k != "input_ids"}, _EMBEDS: inputs[_EMBEDS]}
        feed = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in given.items()}
        if (images := feed.get("pixel_values")) is not None:
            options |= call_options(self._model, images)
        with torch.inference_mode():
            return self._model(**feed, **options)


def load_torch(folder: Path) -> Any:
    """Load a model folder in float32: our loader for per-layer shapes and for classes of ours, else stock.

    Stock transformers reads quantized weights with the library compressed-tensors. Where that is not installed, our
    loader does, to the same bits; products in 8-bit integers need the library.

    Raises:
        ModelError: the folder cannot be loaded, or weights are missing from it or left over.
    """
    check_folder(folder)
    config = read_config(folder)
    family = stated_family(config)
    if family is not None and family.own:
        from compressor.model.folder import load

        return load(folder)
    if "compression" in config or (config.get("quantization_config") is not None and not _library(config)):
        from compressor.model.folder import load

        return load(folder)
    stated, task = (config.get("architectures") or [""])[0], task_of(config)
    body = task == "feature-extraction" and family is not None and stated in family.bodies
    auto = getattr(transformers, stated if body else TASKS[task].auto_class)
    try:
        with quiet():
            model, info = auto.from_pretrained(
                str(folder),
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                **RETURNED,
            )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, SafetensorError, ...
        raise_shortage(error)
        raise ModelError(f"{folder}: transformers cannot load it: {summary(error)}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        # The pooler is no part of what an encoder returns here, and many checkpoints come without it.
        if names := [str(name) for name in sorted(info.get(kind) or []) if "pooler." not in str(name)]:
            raise ModelError(f"{folder}: {kind.replace('_', ' ')} in the weights: {names[0]} and {len(names) - 1} more")
    return model


def _library(config: dict[str, Any]) -> bool:
    """Tell whether compressed-tensors is installed.

    Raises:
        ModelError: it is not, and the model cannot do without it; or the section is none of that library's.
    """
    stated = config["quantization_config"]
    groups = stated.get("config_groups", {}) if isinstance(stated, dict) else None
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise ModelError(f"config.json: quantization_config is {brief(stated)}; allowed: an object with config_groups")
    if importlib.util.find_spec("compressed_tensors") is not None:
        return True
    if any(group.get("input_activations") for group in groups.values()):
        raise ModelError(
            "the model computes in 8-bit integers, for which compressed-tensors must be installed",
            hint="pip install 'compressor[compressed]'",
        )
    return False


@contextmanager
def quiet() -> Iterator[None]:
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


def _numpy(tensor: Any) -> Array:
    return cast(Array, tensor.to(torch.float32).cpu().numpy())
