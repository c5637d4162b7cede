"""From a folder or a hub id to a model: its config, family, tensors and skeleton. Nothing is unpickled or executed."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from compressor.architectures import TOWERS, Family, StackShapes, Tower, family_of
from compressor.architectures.tasks import TASKS, Head, head_of, task_of
from compressor.errors import ModelError, summary
from compressor.machine.shortage import raise_shortage
from compressor.model.blueprint import Blueprint, read_blueprint
from compressor.model.image_size import resampled_entry, resize_images, sides
from compressor.model.leftovers import check_leftovers
from compressor.model.modules import base_of, base_prefix
from compressor.model.names import (
    check_entries,
    codes_as_weight,
    missing_names,
    module_entries,
    tie_entries,
    tied_names,
)
from compressor.model.parts import parts_of
from compressor.model.skeleton import build_skeleton
from compressor.model.source import (
    check_activation,
    config_of,
    read_config,
    resolve_path,
    tower_config,
    tower_in,
)
from compressor.model.weights import materialise
from compressor.storage.artifact import runtime_model
from compressor.storage.grids import SCALE, ZERO_POINT, Grid, GridSpec
from compressor.storage.json_files import read_json
from compressor.storage.packed import PACKED, PackedEntry, packed_entry
from compressor.storage.tensors import INDEX, SINGLE, Checkpoint, Entry, same_values, stored_entries

UNBUILDABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What modules raise when their config makes no sense."""


def unbuildable(error: BaseException) -> ModelError:
    """Return the error for a config whose modules cannot be built, or do not fit together.

    Raises:
        ResourceError: it is for want of memory that they cannot.
    """
    raise_shortage(error)
    return ModelError(
        f"config.json describes a model that cannot be built: {type(error).__name__}: {summary(error)}",
        hint="Take config.json from the same place as the weights.",
    )


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: a plain Hugging Face folder, or a compressed one of ours.

    Attributes:
        path: the folder.
        config: its transformers config.
        family: the table of its family.
        task: what the model is loaded for.
        blueprint: everything that it is but its weights.
        store_dtype: torch dtype name in which changed weights are stored; None keeps the dtype of each tensor.
        tower: the part of the model in the folder that it is; None for all of it.
        trained_size: side of images in config.json, where positions are resampled for images of another size, which
            `config` has then; else None.
    """

    path: Path
    config: PretrainedConfig
    family: Family
    task: str
    blueprint: Blueprint
    store_dtype: str | None = None
    tower: Tower | None = None
    trained_size: int | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """What config.json says; for a tower, what it would say of the tower by itself; of the size that images have.

        Raises:
            ModelError: it cannot be read.
        """
        if self.tower is None:
            config: dict[str, Any] = read_json(self.path / "config.json")
        else:
            config = tower_config(read_config(self.path), self.tower)
        if self.trained_size is not None:
            config["image_size"] = self.config.image_size
        return config

    @property
    def part(self) -> str | None:
        """Name of the tower that it is, of a model of several; None for all of the folder's model."""
        parts = (name for towers in TOWERS.values() for name, tower in towers.items() if tower is self.tower)
        return next(parts, None)

    @property
    def alone_reads(self) -> str | None:
        """What a tower reads, of which the whole model has more; None for a model that is whole."""
        return self.family.inputs if self.tower is not None else None

    @property
    def shapes(self) -> StackShapes:
        """True widths, layer by layer, of the model's only stack."""
        return self.blueprint.shapes

    @property
    def grids(self) -> Mapping[str, GridSpec]:
        """Specs of the grids that quantized weights lie on, by module name; empty for a float model."""
        return self.blueprint.grids

    @property
    def head(self) -> Head | None:
        """What the outputs of a classifier mean; None for what is none.

        Raises:
            ModelError: a regression with several outputs.
        """
        return head_of(self.config, self.task)

    @cached_property
    def weights(self) -> Checkpoint:
        """The tensors, under the names that the skeleton's state_dict gives them.

        Raises:
            ModelError: files are missing or damaged, tensors are missing, shapes differ from config.json, or a trained
                tensor is left over that no module takes.
        """
        model = self.skeleton()
        entries, left = self._unpacking(model, self._stored())
        if self.blueprint.tied:
            tie_entries(model, entries)
        self._resample(model, entries)
        check_leftovers(model, left, missing_names(model, entries, tied=self.blueprint.tied))
        check_entries(model, entries, tied=self.blueprint.tied)
        return Checkpoint(entries, self.store_dtype)

    def _stored(self) -> dict[str, Entry]:
        """Return the tensors of the checkpoint; of a tower, under its names, those not known to belong elsewhere."""
        stored, tower = stored_entries(self.path), self.tower
        if tower is None:
            return stored
        named = {tower.named(name): entry for name, entry in stored.items()}
        return {
            name: replace(entry, stored=name)
            for name, entry in named.items()
            if not name.startswith(tower.beside) and not self._left_out(name)
        }

    def _left_out(self, name: str) -> bool:
        """Tell whether a tensor is one of the blocks behind the one whose output a tower gives."""
        if self.tower is None or self.tower.depth is None:
            return False
        _, inside, rest = name.partition(f".{self.family.blocks}.")
        index = rest.partition(".")[0]
        return bool(inside) and index.isdecimal() and int(index) >= len(self.shapes.layers)

    def _resample(self, model: PreTrainedModel, entries: dict[str, Entry]) -> None:
        """Let positions be read as those of the size that images have, in place."""
        path = self.family.positions
        name = f"{base_prefix(model)}{path}"
        if self.trained_size is None or path is None or name not in entries:
            return
        patch, _ = sides(self.config.patch_size) or (1, 1)
        sizes = (self.trained_size, self.config.image_size, patch)
        entries[name] = resampled_entry(base_of(model), path, entries[name], *sizes)

    def _unpacking(self, model: PreTrainedModel, stored: dict[str, Entry]) -> tuple[dict[str, Entry], list[Entry]]:
        """Return entries under module names, and those for which there is no place though there should be one.

        Codes of quantized weights are read as the weights that they stand for.
        """
        names = {codes_as_weight(name): entry for name, entry in stored.items()}
        entries, rest = module_entries(model, names)
        known = names.keys() | model.state_dict().keys()
        left = [entry for name, entry in rest.items() if not self._beside_codes(name, known)]
        numbers = Checkpoint({})
        for module, spec in self.grids.items():
            entry = entries.get(f"{module}.weight")
            if entry is not None and (entry.stored.endswith(PACKED) or entry.dtype == "int8"):
                entries[f"{module}.weight"] = packed_entry(entry, spec, stored, numbers.read)
        numbers.close()
        return entries, self._without_heads(model, stored, left)

    def _beside_codes(self, name: str, known: Set[str]) -> bool:
        """Tell whether a tensor holds numbers of a quantized weight's grid, or a head's that is tied to one."""
        stem, _, leaf = name.rpartition(".")
        return bool(self.grids) and leaf.startswith(("weight_", "input_")) and f"{stem}.weight" in known

    def _without_heads(self, model: PreTrainedModel, stored: dict[str, Entry], left: list[Entry]) -> list[Entry]:
        """Leave out the heads of a class in `architectures` of which the task asks for the body alone."""
        prefix = f"{model.base_model_prefix}."
        whole = self.config.architectures in (None, [], [type(model).__name__])
        if TASKS[self.task].endings or whole or not any(name.startswith(prefix) for name in stored):
            return left
        return [entry for entry in left if entry.stored.startswith(prefix)]

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
            return build_skeleton(self.config, self.family, self.task, self.blueprint)
        except UNBUILDABLE as error:
            raise unbuildable(error) from error

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

    def with_blueprint(self, blueprint: Blueprint) -> ModelFolder:
        """Return the same folder's description with another blueprint: a model that is not there yet."""
        return replace(self, blueprint=blueprint)


def open_model(
    model: str | Path,
    *,
    task: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    part: str | None = None,
) -> ModelFolder:
    """Open a model folder or hub id; reads config.json only, tensors when they are asked for.

    `dtype` is the torch dtype name in which changed weights will be stored; `auto` keeps that of each tensor. `part`
    names the tower to open, of a model of several.

    Raises:
        ModelError: the model is missing, damaged or not covered.
    """
    folder = resolve_path(str(model), revision=revision)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    tower = tower_in(config, part)
    if tower is not None:
        config = config_of(tower_config(config, tower))
    family = family_of(config)
    trained = resize_images(folder, config, family)
    check_activation(config, family)
    store = None if dtype == "auto" else dtype
    task = task_of(config, family, task)
    head_of(config, task)  # refuses a head that is not covered
    found = ModelFolder(folder, config, family, task, read_blueprint(config, family), store, tower, trained)
    return found.with_blueprint(replace(found.blueprint, tied=False)) if _has_own_head(found) else found


def _has_own_head(model: ModelFolder) -> bool:
    """Tell whether the checkpoint of a tied model stores a head that differs from the embedding: stock does not tie it.

    Both are read, a piece at a time up to the first difference; most tied checkpoints store one of them.
    """
    if not model.blueprint.tied or model.grids:
        return False
    try:
        stored = model._stored()
    except ModelError:  # `weights` says what is wrong with it, if it is needed
        return False
    if not any(name.endswith(f"{head}.weight") for name in stored for head in model.family.heads):
        return False
    skeleton = model.skeleton()
    entries, _ = module_entries(skeleton, stored)
    head, embedding = (entries.get(name) for name in tied_names(skeleton))
    return head is not None and embedding is not None and not same_values(head, embedding)


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a model folder, plain or compressed, as a torch module of its true shapes, in eval mode.

    Raises:
        ModelError: the folder does not hold a covered, undamaged model, or holds a graph instead of a torch module.
    """
    folder = resolve_path(str(path))
    if parts := parts_of(folder):
        graphs = [tower.graph for tower in parts.values() if (folder / tower.graph).is_file()]
        raise ModelError(
            f"{path}: is a model of the parts {', '.join(parts)}, and no torch module of one stack",
            hint=f"Open {' and '.join(graphs)} with onnxruntime; README.md in the folder shows how."
            if graphs
            else "Load it with transformers.AutoModel.from_pretrained.",
        )
    graph = runtime_model(folder)
    if graph is not None and not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        raise ModelError(
            f"{path}: holds {graph.name}, a graph for ONNX Runtime, and no weights for a torch module",
            hint=f"Open it with onnxruntime.InferenceSession({graph.name!r}); README.md in the folder shows how.",
        )
    return open_model(folder).load(dtype)
