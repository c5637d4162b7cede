"""Which stored tensor is which parameter of a module, and whether they fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from compressor.errors import ModelError
from compressor.storage.packed import PACKED
from compressor.storage.tensors import FLOATS, Entry


def codes_as_weight(stored: str) -> str:
    """Return the stored name of the weight that codes stand for; transformers' renaming rules know no codes."""
    stem, _, leaf = stored.rpartition(".")
    return f"{stem}.weight" if leaf == PACKED else stored


def module_entries(model: PreTrainedModel, stored: dict[str, Entry]) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Sort checkpoint entries by what stock transformers' loader makes of their names.

    Returns:
        The entries that the model has a place for, under its own names; the others, under their stored names.

    Raises:
        ModelError: the checkpoint stores tensors in a form that needs more than a renaming, or one of them twice.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    names = cast("dict[str, Any]", dict(model.state_dict()))
    entries: dict[str, Entry] = {}
    left: dict[str, Entry] = {}
    for name, entry in stored.items():
        renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, names)
        if renamed not in names and name in names:
            renamed, converter = rename_source_key(name, [], [], model.base_model_prefix, names)
        if converter is not None:
            raise ModelError(f"{entry.file.name}: tensor {name!r} is stored in a form that must be converted first")
        if renamed in entries:
            raise ModelError(f"the checkpoint holds {renamed} twice, as {entries[renamed].stored} and as {name}")
        (entries if renamed in names else left)[renamed if renamed in names else name] = entry
    return entries, left


def tie_entries(model: PreTrainedModel, entries: dict[str, Entry]) -> None:
    """Keep one entry of a matrix that embedding and head share, under the name of the embedding, in place.

    A checkpoint may store it as the head's alone, or as both.
    """
    head, embedding = tied_names(model)
    shared = entries.pop(head, None)
    if shared is not None and embedding not in entries:
        entries[embedding] = replace(shared, stored=embedding)


def tied_names(model: PreTrainedModel) -> tuple[str, str]:
    """Return the names of the head's weight and of the embedding's, which may be one matrix."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return f"{_name_of(model, head)}.weight", f"{_name_of(model, embedding)}.weight"


def check_entries(model: PreTrainedModel, entries: dict[str, Entry], *, tied: bool) -> None:
    """Compare a checkpoint with a skeleton.

    Raises:
        ModelError: tensors are missing, have other shapes than config.json states, or hold integers where the model
            has real numbers.
    """
    missing, different, whole = missing_names(model, entries, tied=tied), [], []
    for name, tensor in model.state_dict().items():
        if name not in entries:
            continue
        if entries[name].shape != tuple(tensor.shape):
            different.append(f"{name} is {list(entries[name].shape)}, config.json says {list(tensor.shape)}")
        elif tensor.is_floating_point() and entries[name].dtype not in FLOATS:
            whole.append(f"{name} is {entries[name].dtype}")
    if missing:
        raise ModelError(
            f"{len(missing)} tensors are missing from the checkpoint: {', '.join(missing[:4])}",
            hint="The checkpoint is incomplete or of another task; set model.task.",
        )
    if different:
        raise ModelError(f"{len(different)} tensors do not have the shape that config.json states: {different[0]}")
    if whole:
        raise ModelError(
            f"{len(whole)} weights hold integers: {whole[0]}; allowed: {', '.join(FLOATS)}",
            hint="Take the model before it was quantized; codes are read only with the compression_grids beside them.",
        )


def missing_names(model: PreTrainedModel, entries: dict[str, Entry], *, tied: bool) -> list[str]:
    """Return the names of the model for which there is no entry; a tied head needs none."""
    exempt = tied_names(model)[0] if tied else None
    return [name for name in model.state_dict() if name not in entries and name != exempt]


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    found: str = next(name for name, module in model.named_modules() if module is wanted)
    return found
