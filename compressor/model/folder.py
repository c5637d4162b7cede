"""From a folder or a hub id to a model: its config, family, tensors and skeleton. Nothing is unpickled or executed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from compressor.architectures import Family, Shapes, family_named, family_of, read_shapes, shape_section
from compressor.architectures.tasks import task_of
from compressor.errors import ModelError, did_you_mean
from compressor.model.names import check_entries, codes_as_weight, module_entries
from compressor.model.skeleton import build_skeleton
from compressor.storage.grids import SCALE, SECTION, ZERO_POINT, Grid, GridSpec, read_section
from compressor.storage.packed import PACKED, PackedEntry, packed_entry
from compressor.storage.tensors import Checkpoint, Entry, stored_entries

QUANTIZATION = "quantization_config"
"""Key of config.json by which transformers knows a checkpoint whose weights are codes."""
_UNBUILDABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What modules raise when their config makes no sense."""
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "1_Pooling/*"]


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: a plain Hugging Face folder, or a compressed one of ours.

    Attributes:
        path: the folder.
        config: its transformers config.
        family: the table of its family.
        task: what the model is loaded for.
        shapes: true widths, layer by layer.
        store_dtype: torch dtype name in which changed weights are stored; None keeps the dtype of each tensor.
        grids: specs of the grids that quantized weights lie on, by module name; empty for a float model.
    """

    path: Path
    config: PretrainedConfig
    family: Family
    task: str
    shapes: Shapes
    store_dtype: str | None = None
    grids: Mapping[str, GridSpec] = field(default_factory=dict)

    @cached_property
    def weights(self) -> Checkpoint:
        """The tensors, under the names that the skeleton's state_dict gives them.

        Raises:
            ModelError: files are missing or damaged, tensors are missing, or shapes differ from config.json.
        """
        model = self.skeleton()
        entries = self._unpacking(model, stored_entries(self.path))
        check_entries(model, entries, tied=self.shapes.tied)
        return Checkpoint(entries, self.store_dtype)

    def _unpacking(self, model: PreTrainedModel, stored: dict[str, Entry]) -> dict[str, Entry]:
        """Return entries under module names; codes of quantized weights are read as the weights that they stand for."""
        names = {codes_as_weight(name): entry for name, entry in stored.items()}
        entries = module_entries(model, names)
        numbers = Checkpoint({})
        for module, spec in self.grids.items():
            entry = entries.get(f"{module}.weight")
            if entry is not None and (entry.stored.endswith(PACKED) or entry.dtype == "int8"):
                entries[f"{module}.weight"] = packed_entry(entry, spec, stored, numbers.read)
        numbers.close()
        return entries

    def grid(self, module: str) -> Grid:
        """Return the grid of a quantized module, numbers included.

        Raises:
            ModelError: its tensors are missing.
        """
        spec = self.grids[module]
        entry = self.weights.entry(f"{module}.weight")
        if isinstance(entry, PackedEntry):
            return entry.grid(self.weights.read)
        names = [f"{module}.{SCALE}"] if spec.symmetric else [f"{module}.{SCALE}", f"{module}.{ZERO_POINT}"]
        if missing := [name for name in names if name not in self._grid_tensors]:
            raise ModelError(f"{module} is quantized, but the checkpoint has no {' and no '.join(missing)}")
        return Grid(spec, *(self._grid_tensors.tensor(name) for name in names))

    @cached_property
    def _grid_tensors(self) -> Checkpoint:
        stored = stored_entries(self.path)
        return Checkpoint({name: entry for name, entry in stored.items() if name.endswith((SCALE, ZERO_POINT))})

    @cached_property
    def parameters(self) -> int:
        """The number of parameters that config.json describes, tied weights counted once; reads no weights."""
        return sum(int(parameter.numel()) for parameter in self._described().parameters())

    def skeleton(self) -> PreTrainedModel:
        """Return the module with meta parameters of the true shapes, buffers real, in eval mode.

        Optional modules that the checkpoint lacks are None, as stock transformers builds a model without them.

        Raises:
            ModelError: config.json describes a model that cannot be built.
        """
        model = self._described()
        for name in self._absent:
            setattr(model, name, None)
        return model

    def _described(self) -> PreTrainedModel:
        """Return the skeleton of all that config.json describes."""
        try:
            return build_skeleton(self.config, self.family, self.task, self.shapes)
        except _UNBUILDABLE as error:
            raise ModelError(
                f"config.json describes a model that cannot be built: {type(error).__name__}: {error}",
                hint="Take config.json from the same place as the weights.",
            ) from error

    @cached_property
    def _absent(self) -> tuple[str, ...]:
        """Optional modules that the checkpoint lacks; none where there is no checkpoint."""
        if self.task != "feature-extraction" or not self.family.optional:
            return ()
        try:
            stored = [name.split(".") for name in stored_entries(self.path)]
        except ModelError:  # `weights` says what is wrong with it, if it is needed
            return ()
        return tuple(name for name in self.family.optional if not any(name in parts for parts in stored))

    def load(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Return the whole model in memory with its weights in `dtype`."""
        model = self.skeleton()
        materialise(model, self.weights, dtype=dtype)
        return model

    def with_shapes(self, shapes: Shapes) -> ModelFolder:
        """Return the same folder's description with other shapes: a model that is not there yet."""
        return replace(self, shapes=shapes)

    def with_grids(self, grids: Mapping[str, GridSpec]) -> ModelFolder:
        """Return the same folder's description with weights on grids: a model that is not there yet."""
        return replace(self, grids=grids)


def materialise(
    module: nn.Module,
    weights: Checkpoint,
    *,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    skip: Iterable[str] = (),
) -> None:
    """Read the tensors of `module`, known in the checkpoint under `prefix`, into its parameters, in place.

    Tensors under a path in `skip` stay as they are. A tied head receives the embedding's parameter.

    Raises:
        ModelError: a tensor cannot be read or holds NaN or infinity.
    """
    skipped = tuple(skip)
    for path, child in list(module.named_modules()):
        if any(path == s or path.startswith(s + ".") for s in skipped):
            continue
        for name, old in list(child.named_parameters(recurse=False)):
            full = f"{prefix}{path}.{name}" if path else f"{prefix}{name}"
            if full not in weights:
                continue
            tensor = weights.tensor(full).to(device=device, dtype=dtype)
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"tensor {full} holds NaN or infinite values", hint="The checkpoint is damaged.")
            child.register_parameter(name, nn.Parameter(tensor, requires_grad=old.requires_grad))
    if isinstance(module, PreTrainedModel):
        _tie(module)


def _tie(model: PreTrainedModel) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight.is_meta and not embedding.weight.is_meta:
        head.weight = embedding.weight


def release(module: nn.Module) -> None:
    """Drop the weights of a module: its parameters go back to the meta device."""
    for child in module.modules():
        for name, old in list(child.named_parameters(recurse=False)):
            child.register_parameter(name, nn.Parameter(old.data.to("meta"), requires_grad=False))


def resolve_path(model: str, *, revision: str | None = None) -> Path:
    """Return the local folder of a model: `demo`, a folder, or a hub id whose needed files are then downloaded.

    Raises:
        ModelError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    if model == "demo":
        from compressor.demo import MODEL_DIR

        return Path(MODEL_DIR)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise ModelError(f"{model}: no such folder", hint="Give a local model folder or a hub id such as owner/name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_PATTERNS))
    except Exception as error:
        raise ModelError(
            f"{model}: neither a local folder nor a model that the hub gives: {type(error).__name__}",
            hint="Check the name and the network; gated models need HF_TOKEN. A local folder works offline.",
        ) from error


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read config.json.

    Raises:
        ModelError: it is missing, is not a config, is of a family that is not covered, or asks for remote code that was
            not allowed.
    """
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder}: no config.json", hint="Give the folder of a Hugging Face model.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file.name} cannot be read: {error}") from error
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise ModelError(f"{folder}: config.json names no model_type")
    kind = raw.pop("model_type")
    family_named(kind)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        if trust_remote_code:
            return cast(PretrainedConfig, AutoConfig.from_pretrained(folder, trust_remote_code=True))
        config: PretrainedConfig = AutoConfig.for_model(kind, **{k: v for k, v in raw.items() if k != "auto_map"})
        return config
    except (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError) as error:
        raise ModelError(f"config.json is not a config that transformers understands: {error}") from error
    except Exception as error:  # transformers validates configs with huggingface_hub's own error classes
        raise ModelError(f"config.json: {type(error).__name__}: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_activation(config: PretrainedConfig, family: Family) -> None:
    """Raise ModelError where config.json names an activation that transformers does not have."""
    given = getattr(config, family.activation_key)
    if given not in ACT2FN:
        raise ModelError(
            f"config.json: {family.activation_key} is {given!r}{did_you_mean(given, ACT2FN)};"
            f" allowed: {', '.join(sorted(ACT2FN))}"
        )


def open_model(
    model: str | Path,
    *,
    task: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "auto",
) -> ModelFolder:
    """Open a model folder or hub id; reads config.json only, tensors when they are asked for.

    `dtype` is the torch dtype name in which changed weights will be stored; `auto` keeps that of each tensor.

    Raises:
        ModelError: the model is missing, damaged or not covered.
    """
    folder = resolve_path(str(model), revision=revision)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    family = family_of(config)
    _check_activation(config, family)
    store = None if dtype == "auto" else dtype
    shapes, grids = read_shapes(config, family), read_section(config)
    return ModelFolder(folder, config, family, task_of(config, family, task), shapes, store, grids)


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a model folder, plain or compressed, as a torch module of its true shapes, in eval mode.

    Raises:
        ModelError: the folder does not hold a covered, undamaged model.
    """
    return open_model(path).load(dtype)


def config_for(source: ModelFolder, shapes: Shapes, updates: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a model like `source` with other shapes.

    Where the family's own keys can state the shapes, they do, and stock transformers loads the model; otherwise the
    `compression` section states them beside unchanged stock keys.
    """
    config: dict[str, Any] = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    config.pop("compression", None)
    config.pop(SECTION, None)
    config.pop(QUANTIZATION, None)
    config.update(updates)
    family = source.family
    if source.store_dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = source.store_dtype
    if "lm_head" in family.heads:
        config["tie_word_embeddings"] = shapes.tied
    same_hidden = shapes.hidden_size == int(source.config.hidden_size)
    if shapes.uniform and (family.explicit_head_dim or same_hidden):
        layer = shapes.layers[0]
        config[family.width_key] = layer.intermediate_size
        config["hidden_size"] = shapes.hidden_size
        config["num_attention_heads"] = layer.num_attention_heads
        if hasattr(source.config, "num_key_value_heads"):
            config["num_key_value_heads"] = layer.num_key_value_heads
        if family.explicit_head_dim:
            config["head_dim"] = shapes.head_dim
    else:
        config["compression"] = shape_section(shapes)
    return config
