"""Compress trained Hugging Face models into smaller, faster, verified artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor._api import bench, evaluate, plan, run, verify
from compressor.machine.libraries import no_telemetry

__all__ = ["bench", "evaluate", "load", "plan", "run", "verify"]
__version__ = "0.1.0"

# In a wheel `exporters` and `recipes` lie inside this package; in a source checkout they lie beside it.
if not (_here := Path(__file__).resolve().parent).joinpath("exporters").is_dir():
    __path__.append(str(_here.parent))

no_telemetry()


def load(path: str | Path) -> Any:
    """Load a model folder, plain or compressed, as a torch module of its true shapes, in eval mode.

    Raises:
        ModelError: the folder does not hold a covered, undamaged model.
    """
    from compressor.model.folder import load as load_model

    return load_model(path)
