"""safetensors artifacts: the tensors of a model folder, one at a time, with everything that makes it loadable.

Where all blocks have the same widths, config.json says so and stock `AutoModel.from_pretrained` loads the folder; other
folders state their widths in config.json under `compression`, and `compressor.load` reads them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.checkpoint import INDEX, SINGLE, Entry, Plan, write_safetensors
from compressor.companions import copy_companions
from compressor.errors import ResourceError
from compressor.exporters.release import PeriodicRelease
from compressor.exporters.remote_code import add_remote_code
from compressor.exporters.result import ExportResult

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint
    from compressor.loading import ModelFolder

SHARD_BYTES = 5_000_000_000


def export_safetensors(
    source: ModelFolder, out: Path, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> ExportResult:
    """Write a model folder as safetensors: `model.safetensors`, or shards with an index.

    Tensors keep the names that they are stored under, so the folder stays one that transformers knows.

    Args:
        source: the model.
        out: existing folder; receives the weights, config, tokenizer and processor files, and the modelling file where
            widths differ from layer to layer.
        dtype: torch name of the type that floating-point tensors are stored in; None keeps each as it is.
        shard_bytes: files larger than this are split; a single tensor never is.

    Returns:
        The files and the time; the same model gives the same bytes.

    Raises:
        ModelError: a tensor cannot be read.
        ResourceError: the disk is full.
    """
    start = time.perf_counter()
    names_of = {source.weights.entry(name).stored: name for name in source.weights.names()}
    entries = {stored: _stored_as(source.weights.entry(names_of[stored]), dtype) for stored in sorted(names_of)}
    shards = list(_shards(entries, shard_bytes))
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    mapped = PeriodicRelease(source.weights.close)
    files = []
    try:
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(out / name, (_plan(source.weights, names_of[s], entries[s], mapped) for s in shard))
            source.weights.close()
            files.append(out / name)
        if len(shards) > 1:
            total = sum(entry.bytes for entry in entries.values())
            files.append(_write_index(out, dict(zip(names, shards, strict=True)), total))
        files += _write_config(source, out, dtype)
    except OSError as error:
        raise ResourceError(f"{out}: cannot write the model: {error}", hint="Free some space and run again.") from error
    files += copy_companions(source.path, out)
    return ExportResult(sorted(files), time.perf_counter() - start)


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _stored_as(entry: Entry, dtype: str | None) -> Entry:
    return replace(entry, dtype=dtype) if dtype is not None and "float" in entry.dtype else entry


def _write_config(source: ModelFolder, out: Path, dtype: str | None) -> list[Path]:
    """Write config.json, and what `trust_remote_code` needs where the widths are not uniform."""
    config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    files = [out / "config.json"]
    if not source.shapes.uniform:
        files.append(add_remote_code(source, config, out))
    files[0].write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return files


def _shards(entries: Mapping[str, Entry], limit: int) -> Iterator[list[str]]:
    """Yield lists of names whose tensors together take at most `limit` bytes, or one larger tensor."""
    shard: list[str] = []
    size = 0
    for name, entry in entries.items():
        if shard and size + entry.bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += entry.bytes
    yield shard


def _plan(weights: Checkpoint, name: str, entry: Entry, mapped: PeriodicRelease) -> Plan:
    def make() -> Any:
        mapped.read(entry.bytes)
        return weights.tensor(name)

    return Plan(entry.stored, entry.dtype, entry.shape, make)


def _write_index(out: Path, shards: dict[str, list[str]], total: int) -> Path:
    where = {name: file for file, names in shards.items() for name in names}
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    path = out / INDEX
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path
