"""The source gate in a run: once before the passes, and again only when something that it depends on has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.architectures import TOWERS
from compressor.machine.progress import Progress
from compressor.model.folder import open_model
from compressor.model.parts import parts_of
from compressor.model.source import read_config, resolve_path
from compressor.pipeline.inputs import source_basis
from compressor.pipeline.prepare import Prepared
from compressor.recipe import ModelSection
from compressor.storage.artifact import runtime_model
from compressor.verification import MANIFEST, Check
from compressor.verification.source import DIFFERENCE, recorded_check, run_gate, source_check, why_skipped
from compressor.verification.source_whole import run_whole_gate

STAGE = "compare with stock transformers"
_KEPT = "source.json"
"""In a work folder: what the gate found, and of which model."""


def checked_source(prepared: Prepared, hashes: Mapping[str, str], work: Path, progress: Progress) -> dict[str, Any]:
    """Hold the source gate, or take its result of an earlier run of the same inputs.

    Returns:
        The facts that it found; `skipped` with the reason where it cannot be held.

    Raises:
        ModelError: the model is not the one that stock transformers loads.
        ResourceError: there is too little memory to load it.
    """
    if (reason := why_skipped(prepared.source)) is not None:
        return {"skipped": reason}
    progress.stage(STAGE)
    basis, file = source_basis(prepared, hashes), work / _KEPT
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["basis"] == basis and source_check(kept["facts"]).passed:
            return dict(kept["facts"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # there is none that can be used
    facts = run_gate(prepared.source, trust_remote_code=prepared.recipe.model.trust_remote_code)
    file.write_text(json.dumps({"basis": basis, "facts": facts}), encoding="utf-8")
    return facts


def checked_whole(folder: Path, progress: Progress) -> dict[str, Any]:
    """Hold the source gate for what the parts of a model do together; see `checked_source`.

    Raises:
        ModelError: the parts, joined, are not the model that stock transformers loads.
        ResourceError: there is too little memory to load it.
    """
    for part in parts_of(folder):
        if (reason := why_skipped(open_model(folder, part=part))) is not None:
            return {"skipped": reason}
    progress.stage(STAGE)
    return run_whole_gate(folder)


def whole_against(folder: Path, manifest: Mapping[str, Any], progress: Progress) -> list[Check]:
    """Repeat the source gate on the whole model that an artifact is compared with; see `source_against`.

    Raises:
        ModelError, ResourceError: as `checked_whole` does.
    """
    if (folder / MANIFEST).is_file():
        return []
    facts = checked_whole(folder, progress)
    return [] if "skipped" in facts else [source_check(facts), recorded_check(facts, manifest.get("source"))]


def source_checks(facts: Mapping[str, Any]) -> list[Check]:
    """Return the gate's result as checks."""
    return [] if "skipped" in facts else [source_check(facts)]


def part_in(folder: Path, part: str | None) -> str | None:
    """Return the part that an artifact was made of, for a folder that holds the whole; else the folder is the part."""
    return part if part is not None and read_config(folder).model_type in TOWERS else None


def source_against(against: str, section: ModelSection, manifest: Mapping[str, Any], progress: Progress) -> list[Check]:
    """Repeat the source gate on the model that an artifact is compared with, and see that it is the artifact's source.

    Another artifact is neither a source nor what stock transformers loads, and gives no checks.

    Args:
        against: folder or hub id of the model.
        section: how the artifact's recipe opened its model.
        manifest: the artifact's compression.json.
        progress: where to report how far it is.

    Raises:
        ModelError: the model is not the one that stock transformers loads.
        ResourceError: there is too little memory to load it.
    """
    folder = resolve_path(against)
    if (folder / MANIFEST).is_file() or runtime_model(folder) is not None:
        return []
    part = part_in(folder, section.part)
    model = open_model(folder, task=section.task, trust_remote_code=section.trust_remote_code, part=part)
    if why_skipped(model) is not None:
        return []
    progress.stage(STAGE)
    facts = run_gate(model, trust_remote_code=section.trust_remote_code)
    return [source_check(facts), recorded_check(facts, manifest.get("source"))]


def recorded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what compression.json keeps of the gate's result."""
    return {key: value for key, value in facts.items() if key != DIFFERENCE}
