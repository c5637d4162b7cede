"""Runs one pass over one model: plan, survey, block walk, checkpoint; the result is a model folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compressor.architectures import Shapes
from compressor.data.kinds import Batches
from compressor.errors import DataError, ModelError
from compressor.machine.memory import trim_heap
from compressor.model.folder import ModelFolder, config_for, open_model
from compressor.passes.base import Pass
from compressor.storage.grids import SECTION, section
from compressor.storage.tensors import Checkpoint
from compressor.walk.checkpoint import ShardWriter
from compressor.walk.walk import OUTSIDE, PARKED, SPILLED, Change, Walk, block_key

FINDINGS = "findings"
# A survey that finds this number n has the blocks changed by every n-th calibration batch alone.
EVERY = "every"


@dataclass(frozen=True)
class Setting:
    """Where and how a pass runs.

    Attributes:
        work: folder of its checkpoint; becomes the resulting model folder.
        fingerprint: names everything the result depends on; finished parts of another fingerprint are not reused.
        cache_bytes: activations that may stay in memory.
        device: torch device of the blocks.
        advance: called with a note after each block.
    """

    work: Path
    fingerprint: str
    cache_bytes: int
    device: str = "cpu"
    advance: Callable[[str], None] = lambda note: None


class _Findings(Mapping[str, torch.Tensor]):
    """What a survey has found, read from disk whenever it is asked for."""

    def __init__(self, stored: Checkpoint, device: torch.device) -> None:
        self._stored, self._device = stored, device

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._stored:
            raise KeyError(name)
        return torch.as_tensor(self._stored.tensor(name)).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored.names())

    def __len__(self) -> int:
        return len(self._stored.names())


def apply_pass(
    method: Pass, source: ModelFolder, batches: Batches, setting: Setting
) -> tuple[ModelFolder, list[Change]]:
    """Run `method` on `source`, going on from finished parts in `setting.work`; return the new model and the changes.

    Raises:
        DataError: the pass is calibrated and there is no batch.
        ModelError: the pass changed nothing, or removed another number of channels than it planned.
    """
    if method.calibrated and not len(batches):
        raise DataError("calibration.data: there is no batch to calibrate on")
    planned = method.plan(source)
    shards = ShardWriter(setting.work, source, setting.fingerprint)
    shutil.rmtree(setting.work / SPILLED, ignore_errors=True)  # of a run that was killed
    walk = Walk(
        source,
        batches,
        work=setting.work,
        cache_bytes=setting.cache_bytes,
        device=setting.device,
        advance=setting.advance,
    )
    if FINDINGS not in shards.done:
        shards.save(FINDINGS, {}, method.survey(walk, planned), findings=True)
        trim_heap()  # what a survey leaves behind is not what a block fits
    shutil.rmtree(setting.work / PARKED, ignore_errors=True)
    found = _Findings(shards.read(FINDINGS), walk.device)
    method.begin(source, planned, found)
    if EVERY in found:
        walk.every = int(found[EVERY])
    changes = walk.rewrite(method, planned, shards)
    final = replace(planned, layers=tuple(change.layer for change in changes))
    check_planned(method.name, planned, final)
    config = config_for(source, final, {**method.config_updates(source), **_grid_section(method, walk, changes)})
    folder = shards.finish(config, [OUTSIDE, *(block_key(i) for i in range(walk.count))])
    del walk
    trim_heap()  # an export, or the next pass, starts from what is in use
    return open_model(folder, task=source.task), changes


def _grid_section(method: Pass, walk: Walk, changes: list[Change]) -> dict[str, Any]:
    """Return config.json's section on the grids of the weights that the pass has quantized, if it has."""
    specs = {name: grid.spec for name, grid in walk.grids.items()}
    for index, change in enumerate(changes):
        specs |= {f"{walk.prefix}.{index}.{path}": spec for path, spec in change.grids.items()}
    return {SECTION: section(specs, method.name)} if specs else {}


def check_planned(name: str, planned: Shapes, final: Shapes) -> None:
    """Compare what a pass did with what it planned.

    Raises:
        ModelError: the sums of channels or heads differ.
    """

    def sums(shapes: Shapes) -> tuple[int, ...]:
        layers = shapes.layers
        return (
            sum(layer.intermediate_size for layer in layers),
            sum(layer.num_attention_heads for layer in layers),
            sum(layer.num_key_value_heads for layer in layers),
            sum(sum(layer.residual) for layer in layers),
        )

    if sums(planned) != sums(final):
        raise ModelError(
            f"{name}: planned sums of widths {sums(planned)}, got {sums(final)}; this is a defect of the pass"
        )


def fingerprint_environment() -> dict[str, str]:
    """Return what beside inputs and options can change bits: library versions and thread count."""
    import transformers

    import compressor

    return {
        "compressor": compressor.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
        "deterministic": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
    }
