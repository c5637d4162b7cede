"""safetensors artifacts: the tensors of a model folder, one at a time, with everything that makes it loadable.

Where all blocks have the same widths, config.json says so and stock `AutoModel.from_pretrained` loads the folder; other
folders state their widths in config.json under `compression`, and `compressor.load` reads them. Quantized weights are
written as compressed-tensors has them (`compressor.exporters.compressed_tensors`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import ResourceError
from compressor.exporters.compressed_tensors import Layout
from compressor.exporters.remote_code import add_remote_code
from compressor.exporters.result import ExportResult
from compressor.exporters.steps import Advance, WeightSteps, silent
from compressor.exporters.trimming import PeriodicTrim
from compressor.model.blueprint import SECTION
from compressor.model.config import QUANTIZATION
from compressor.storage.companions import copy_companions
from compressor.storage.tensors import INDEX, SINGLE, Entry, Plan, write_safetensors

if TYPE_CHECKING:
    from compressor.model.folder import ModelFolder
    from compressor.storage.tensors import Checkpoint

SHARD_BYTES = 5_000_000_000


def export_safetensors(
    source: ModelFolder,
    out: Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    advance: Advance = silent,
) -> ExportResult:
    """Write a model folder as safetensors: `model.safetensors`, or shards with an index.

    Tensors keep the names that they are stored under, so the folder stays one that transformers knows.

    Args:
        source: the model.
        out: existing folder; receives the weights, config, tokenizer and processor files, and the modelling file where
            widths differ from layer to layer.
        dtype: torch name of the type that floating-point tensors are stored in; None keeps each as it is. Scales of
            quantized weights are float32 always, and so is the model when it is loaded.
        shard_bytes: files larger than this are split; a single tensor never is.
        advance: told what has been done, `STEPS` times.

    Returns:
        The files and the time; the same model gives the same bytes.

    Raises:
        ModelError: a tensor cannot be read.
        ResourceError: the disk is full.
    """
    start = time.perf_counter()
    layout = Layout(source) if source.grids else None
    shards = list(_shards(_plans(source, dtype, layout, advance), shard_bytes))
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    files = []
    try:
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(out / name, shard)
            source.weights.close()
            files.append(out / name)
        if len(shards) > 1:
            files.append(_write_index(out, dict(zip(names, shards, strict=True))))
        files += _write_config(source, out, dtype, layout)
    except OSError as error:
        raise ResourceError(f"{out}: cannot write the model: {error}", hint="Free some space and run again.") from error
    files += copy_companions(source.path, out, source.alone_reads)
    codes = layout.codes if layout is not None else {}
    return ExportResult(sorted(files), time.perf_counter() - start, codes=codes)


def _plans(source: ModelFolder, dtype: str | None, layout: Layout | None, advance: Advance) -> list[Plan]:
    """Return what is written, sorted by name: codes and grids of quantized weights, all other tensors as they are."""
    quantized = {f"{module}.weight" for module in source.grids}
    plans = list(layout.plans()) if layout is not None else []
    for name in source.weights.names():
        if name not in quantized:
            plans.append(_plan(source.weights, name, _stored_as(source.weights.entry(name), dtype)))
    trim, steps = PeriodicTrim(), WeightSteps(sum(plan.bytes for plan in plans), advance)

    def seen(count: int) -> None:
        trim.read(count)
        steps.written(count)

    return sorted((_counted(plan, seen) for plan in plans), key=lambda plan: plan.name)


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _stored_as(entry: Entry, dtype: str | None) -> Entry:
    return replace(entry, dtype=dtype) if dtype is not None and "float" in entry.dtype else entry


def _write_config(source: ModelFolder, out: Path, dtype: str | None, layout: Layout | None) -> list[Path]:
    """Write config.json, and what `trust_remote_code` needs where the widths are not uniform."""
    config = source.stated
    config.pop("auto_map", None)  # code of the source, which does not come along
    if layout is not None:
        # Scales take this type when transformers loads them: any other would move the weights off their grids.
        dtype = "float32"
        config[QUANTIZATION] = layout.config()
    if dtype is not None:
        config.pop("torch_dtype", None)  # the older name: beside `dtype` it counts for nothing
        config["dtype"] = dtype
    files = [out / "config.json"]
    if SECTION in config:
        files.append(add_remote_code(source, config, out))
    files[0].write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return files


def _shards(plans: list[Plan], limit: int) -> Iterator[list[Plan]]:
    """Yield lists of tensors that together take at most `limit` bytes, or one larger tensor."""
    shard: list[Plan] = []
    size = 0
    for plan in plans:
        if shard and size + plan.bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(plan)
        size += plan.bytes
    yield shard


def _plan(weights: Checkpoint, name: str, entry: Entry) -> Plan:
    return Plan(entry.stored, entry.dtype, entry.shape, lambda: weights.tensor(name))


def _counted(plan: Plan, seen: Callable[[int], None]) -> Plan:
    """Return the plan of a tensor whose bytes are told when it is made."""

    def make() -> Any:
        seen(plan.bytes)
        return plan.make()

    return replace(plan, make=make)


def _write_index(out: Path, shards: dict[str, list[Plan]]) -> Path:
    where = {plan.name: file for file, plans in shards.items() for plan in plans}
    total = sum(plan.bytes for plans in shards.values() for plan in plans)
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    path = out / INDEX
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path
