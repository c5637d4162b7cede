"""The files of an artifact that a runtime loads."""

from __future__ import annotations

from pathlib import Path

ORT_MODEL, ONNX_MODEL = "model.ort", "model.onnx"
SIGNATURE = "model.sig"
"""The name that the OpenSSF gives to a signature of a model."""
BESIDE = (".git", ".gitattributes", ".gitignore", ".cache")
"""What version control and hub downloads keep in a folder: no part of the artifact, and never touched."""


def runtime_model(folder: Path) -> Path | None:
    """Return the file that ONNX Runtime is to load: `model.ort` before `model.onnx`; None without either."""
    return next((folder / name for name in (ORT_MODEL, ONNX_MODEL) if (folder / name).is_file()), None)
