"""For which kind of processor an artifact was made, as compression.json says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ModelError
from compressor.machine.processor import TARGETS
from compressor.storage.json_files import read_json

TARGET = "target"
"""Key of compression.json."""


def stated_target(manifest: Mapping[str, Any]) -> str | None:
    """Return the kind of processor that a manifest states; None where it states none that is known."""
    stated = manifest.get(TARGET)
    return stated if isinstance(stated, str) and stated in TARGETS else None


def target_of_folder(folder: Path) -> str | None:
    """Return the kind of processor that the artifact in `folder` was made for; None where nothing says so."""
    try:
        return stated_target(read_json(folder / "compression.json"))
    except ModelError:  # verification says what is wrong with it
        return None
