"""Runs one pass over one model: plan, survey, block walk, checkpoint; the result is a model folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from compressor.data.kinds import Batches
from compressor.errors import DataError, ModelError
from compressor.machine.memory import trim_heap
from compressor.model.blueprint import Blueprint
from compressor.model.config import config_for
from compressor.model.folder import ModelFolder, open_model
from compressor.model.image_places import state_places
from compressor.passes.base import Findings, Pass, Settles, Surveys, Target
from compressor.storage.grids import section
from compressor.storage.tensors import Checkpoint
from compressor.walk import Change, Walk
from compressor.walk.checkpoint import STATE, ShardWriter
from compressor.walk.walk import OUTSIDE, PARKED, SPILLED, block_key

FINDINGS = "findings"


@dataclass(frozen=True)
class Setting:
    """Where and how a pass runs.

    Attributes:
        work: folder of its checkpoint; becomes the resulting model folder.
        fingerprint: names everything the result depends on; finished parts of another fingerprint are not reused.
        cache_bytes: activations that may stay in memory.
        target: what the artifact is for.
        device: torch device of the blocks.
        advance: called with a note after each block.
        inform: called with what the user should know.
    """

    work: Path
    fingerprint: str
    cache_bytes: int
    target: Target = field(default_factory=Target)
    device: str = "cpu"
    advance: Callable[[str], None] = lambda note: None
    inform: Callable[[str], None] = lambda message: None


class _Stored(Mapping[str, torch.Tensor]):
    """Tensors that a survey has found, read from disk whenever one is asked for."""

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
    if method.needs.calibration == "must" and not len(batches):
        raise DataError("calibration.data: there is no batch to calibrate on")
    if method.needs.calibration == "none":
        batches = Batches(tuple, 0)
    planned = method.plan(source, setting.target)
    shards = ShardWriter(setting.work, source, setting.fingerprint)
    if shards.damaged:
        setting.inform(f"{setting.work / STATE} is damaged, so --resume finds nothing of {method.name}: it starts over")
    shutil.rmtree(setting.work / SPILLED, ignore_errors=True)  # of a run that was killed
    walk = Walk(
        source,
        batches,
        work=setting.work,
        cache_bytes=setting.cache_bytes,
        device=setting.device,
        advance=setting.advance,
    )
    if isinstance(method, Surveys):
        findings = _surveyed(method, walk, planned, shards)
        method.begin(planned, findings)
        walk.every = findings.every
    if isinstance(method, Settles):
        planned = method.settled(source)
    changes = walk.rewrite(method, planned, shards, dense=method.needs.dense)
    final = _final(planned, source, walk, changes)
    check_planned(method.name, planned, final)
    config = config_for(source, final, section(final.grids, method.name) if final.grids else None)
    folder = shards.finish(config, [OUTSIDE, *(block_key(i) for i in range(walk.count))])
    del walk
    trim_heap()  # so that an export or the next pass does not start with free pages of this one
    model = open_model(folder, task=source.task)
    state_places(model)
    return model, changes


def _surveyed(method: Surveys, walk: Walk, planned: Blueprint, shards: ShardWriter) -> Findings:
    """Return what a survey finds, or has found before the run was killed."""
    if FINDINGS not in shards.done:
        found = method.survey(walk, planned)
        shards.save(FINDINGS, {"every": found.every}, found.tensors, findings=True)
        trim_heap()  # return what the survey has freed
    shutil.rmtree(shards.folder / PARKED, ignore_errors=True)
    return Findings(_Stored(shards.read(FINDINGS), walk.device), shards.note(FINDINGS)["every"])


def _final(planned: Blueprint, source: ModelFolder, walk: Walk, changes: list[Change]) -> Blueprint:
    """Return the blueprint of what the pass has made: widths, grids, changes of computation as blocks report them."""
    grids, gates = {name: grid.spec for name, grid in walk.grids.items()}, dict(source.blueprint.gates)
    for index, change in enumerate(changes):
        grids |= {f"{walk.prefix}.{index}.{path}": spec for path, spec in change.grids.items()}
        gates |= {f"{walk.prefix}.{index}.{path}": gate for path, gate in change.gates.items()}
    added = tuple(change.reduction for change in changes if change.reduction is not None)
    shapes = replace(planned.shapes, layers=tuple(change.layer for change in changes))
    reductions = source.blueprint.reductions + added
    return replace(planned.with_shapes(shapes), grids=grids, reductions=reductions, gates=gates)


def check_planned(name: str, planned: Blueprint, final: Blueprint) -> None:
    """Compare what a pass did with what it planned.

    Raises:
        ModelError: the sums of channels or heads differ, or the token reductions do.
    """

    def sums(blueprint: Blueprint) -> tuple[int, ...]:
        layers = blueprint.shapes.layers
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
    if planned.reductions != final.reductions:
        raise ModelError(f"{name}: made other token reductions than it planned; this is a defect of the pass")


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
