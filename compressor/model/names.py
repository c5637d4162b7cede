"""Which stored tensor is which parameter of a module, and whether they fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, rename_source_key

from compressor.errors import ModelError
from compressor.storage.packed import PACKED
from compressor.storage.tensors import FLOATS, Entry, rows_of


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
        parts = {renamed: entry} if converter is None else _parts(renamed, name, entry, converter, converters)
        for renamed, part in parts.items():
            if renamed in entries:
                raise ModelError(f"the checkpoint holds {renamed} twice, as {entries[renamed].stored} and as {name}")
            (entries if renamed in names else left)[renamed if renamed in names else name] = part
    return entries, left


def _parts(renamed: str, name: str, entry: Entry, pattern: str, converters: list[WeightConverter]) -> dict[str, Entry]:
    """Return the parameters that one stored tensor holds, where they stand in it as equal groups of rows.

    Args:
        renamed: name of the first in the model.
        name: of the tensor in the checkpoint.
        entry: the tensor.
        pattern: of the converter that stock transformers' loader applies.
        converters: all of them.

    Raises:
        ModelError: the tensor holds them in another form.
    """
    rule = next(converter for converter in converters if pattern in converter.source_patterns)
    chunked = [isinstance(step, Chunk) and step.dim == 0 and not step.num_shards_attribute for step in rule.operations]
    first, count = rule.target_patterns[0], len(rule.target_patterns)
    rows = entry.shape[0] if entry.shape else 0
    if chunked != [True] or rows % count or pattern not in name or first not in renamed:
        raise ModelError(f"{entry.file.name}: tensor {name!r} is stored in a form that must be converted first")
    return {
        renamed.replace(first, target): replace(
            rows_of(entry, i * rows // count, rows // count), stored=name.replace(pattern, target)
        )
        for i, target in enumerate(rule.target_patterns)
    }


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
