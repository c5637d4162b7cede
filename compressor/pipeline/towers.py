"""One tower of a model as a model folder of its own, which all that follows works on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from compressor.exporters.safetensors import export_safetensors
from compressor.model.folder import open_model
from compressor.pipeline.prepare import Prepared


def taken_out(prepared: Prepared, work: Path) -> Prepared:
    """Return the recipe bound to its tower in a folder in `work`; a model that is whole stays where it is.

    Raises:
        ModelError: a tensor cannot be read.
        ResourceError: the disk is full.
    """
    source = prepared.source
    if source.tower is None:
        return prepared
    folder = work / "tower"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    export_safetensors(source, folder)
    model = open_model(folder, task=source.task, dtype=prepared.recipe.model.dtype)
    return replace(prepared, source=model)
