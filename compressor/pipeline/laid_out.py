"""An artifact of several graphs, and each of its parts laid out as an artifact of its own.

Passes, exporters and checks know models of one stack of blocks and artifacts of one graph. So a run makes such an
artifact of each part and joins them into one folder; whoever looks at that folder gets each part back, byte for byte.
`config.json` of the whole holds that of each part under the key of its tower, and `compression.json` its manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from compressor.architectures import Tower, read_by
from compressor.errors import ModelError, ResourceError
from compressor.exporters.safetensors import export_safetensors
from compressor.model.folder import open_model
from compressor.model.image_places import PROCESSOR
from compressor.model.parts import PARTS, parts_of
from compressor.storage.companions import copy_companions
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json
from compressor.storage.tensors import SINGLE, Checkpoint, Plan, stored_entries, write_safetensors
from compressor.verification.manifest import MANIFEST, REFERENCE, read_manifest

_CONFIG = "config.json"


def reference_of(part: str) -> str:
    """Return the name that the reference of a part has in the whole artifact."""
    return f"{Path(REFERENCE).parent.as_posix()}/{part}{Path(REFERENCE).suffix}"


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a config.json, the same bytes for the same content."""
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def join(parts: Mapping[str, Path], source: Path, folder: Path, scalars: Mapping[str, float]) -> None:
    """Move the files of parts that were exported apart into the existing `folder`, and describe the whole there.

    Args:
        parts: name of a part -> its folder.
        source: folder of the model.
        folder: of the artifact.
        scalars: by which the parts' embeddings are joined; where config.json has a key for one, it states the value.

    Raises:
        ModelError: a file cannot be read.
        ResourceError: the disk is full.
    """
    config = read_json(source / _CONFIG)
    config.pop("auto_map", None)
    try:
        (folder / REFERENCE).parent.mkdir()
        for part, place in parts.items():
            tower = parts_of(source)[part]
            config[tower.config] = _within(read_json(place / _CONFIG), tower)
            config.pop(f"{tower.config}_dict", None)  # of the first releases: what it says would win
            for name in _graph_files(tower):
                if (place / name).is_file():
                    (place / name).rename(folder / name)
            (place / REFERENCE).rename(folder / reference_of(part))
        if any((place / SINGLE).is_file() for place in parts.values()):
            _write_checkpoint(parts, source, folder, scalars)
            config |= _common({part: read_json(place / _CONFIG) for part, place in parts.items()}, "dtype")
        for name, value in scalars.items():
            if f"{name}_init_value" in config:
                config[f"{name}_init_value"] = value
        config |= {tower.depth: -1 for tower in parts_of(source).values() if tower.depth is not None}
        write_config(folder, config)
        copy_companions(source, folder)
        for place in parts.values():
            if (place / PROCESSOR).is_file():  # it says how many features an image has left
                shutil.copyfile(place / PROCESSOR, folder / PROCESSOR)
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot write the model: {error}", hint="Free some space and run again."
        ) from error


def _within(config: dict[str, Any], tower: Tower) -> dict[str, Any]:
    """Return the config of a tower by itself as the whole model states it: of a type that stock transformers knows."""
    if not tower.own:
        return config
    return {**{key: value for key, value in config.items() if key != "auto_map"}, "model_type": tower.kinds[0]}


def _write_checkpoint(parts: Mapping[str, Path], source: Path, folder: Path, scalars: Mapping[str, float]) -> None:
    """Write the tensors of all parts, and those that belong to none of them, under the names of the whole model."""
    stored, towers = stored_entries(source), parts_of(source)
    outside = (name for name in stored if all(t.named(name).startswith(t.beside) for t in towers.values()))
    entries = {name: stored[name] for name in (*scalars, *outside)}
    for part, place in parts.items():
        names = {towers[part].named(name): name for name in stored}
        entries |= {names.get(name, name): entry for name, entry in stored_entries(place).items()}
    tensors = Checkpoint(entries)
    plans = [Plan(name, entry.dtype, entry.shape, partial(tensors.tensor, name)) for name, entry in entries.items()]
    write_safetensors(folder / SINGLE, plans)
    tensors.close()


def _common(configs: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return what all parts say of a key, nothing where they differ."""
    values = {str(config.get(key)) for config in configs.values()}
    return {key: values.pop()} if len(values) == 1 else {}


@contextmanager
def laid_out(folder: Path, part: str) -> Iterator[Path]:
    """Give one part of an artifact or a model as a folder of its own, for as long as the context is entered.

    Raises:
        ModelError: a file of it is missing, is none of the folder's own, or does not describe the part.
        ResourceError: the disk is full.
    """
    tower = parts_of(folder)[part]
    with tempfile.TemporaryDirectory(prefix=f"compressor-{part}-") as temporary:
        place = Path(temporary) / part
        try:
            (place / REFERENCE).parent.mkdir(parents=True)
            _lay_out(folder, part, tower, place)
        except OSError as error:
            raise ResourceError(f"{place}: cannot be written: {error.strerror}", hint="Free some space.") from error
        yield place


def has_graphs(folder: Path) -> bool:
    """Tell whether a folder of a model of several parts is an artifact of graphs, complete or not."""
    return any((folder / tower.graph).is_file() for tower in parts_of(folder).values())


def _lay_out(folder: Path, part: str, tower: Tower, place: Path) -> None:
    graphs, made = has_graphs(folder), (folder / MANIFEST).is_file()
    if not graphs:
        export_safetensors(open_model(folder, part=part), place)
        if not made:
            return
    elif own_file(folder, tower.graph) is None:
        raise ModelError(f"{tower.graph} is missing: the graph of the part {part}")
    config = read_json(own_file(folder, _CONFIG) or folder / _CONFIG).get(tower.config)
    if not isinstance(config, dict):
        raise ModelError(f"config.json: {tower.config} is missing, which describes the part {part}")
    if graphs and tower.own:
        config["model_type"] = tower.model_type
    if graphs or not tower.own:  # else what was written is what the part states of itself
        write_config(place, config)
    if graphs:
        copy_companions(folder, place, read_by(tower))
    for name in _graph_files(tower):
        _link(own_file(folder, name), place / name)
    _link(own_file(folder, reference_of(part)), place / REFERENCE)
    parts = read_manifest(folder).get(PARTS) if made else None
    stated = parts.get(part) if isinstance(parts, dict) else None
    if isinstance(stated, dict):
        (place / MANIFEST).write_text(json.dumps(stated), encoding="utf-8")


def _graph_files(tower: Tower) -> list[str]:
    graphs = [tower.graph, *([tower.embeddings] if tower.embeddings is not None else [])]
    return [name for graph in graphs for name in (graph, f"{graph}.data")]


def _link(file: Path | None, place: Path) -> None:
    """Let a file lie at another place as well, without its bytes twice where the file system can."""
    if file is None:
        return
    real = os.path.realpath(file)
    try:
        os.link(real, place)
    except OSError:
        shutil.copyfile(real, place)
