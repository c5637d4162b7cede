"""The files of an artifact that a runtime loads."""

from __future__ import annotations

from pathlib import Path

from compressor.architectures import GRAPHS

ORT_MODEL, ONNX_MODEL = "model.ort", "model.onnx"
SIGNATURE = "model.sig"
"""The name that the OpenSSF gives to a signature of a model."""
BESIDE = (".git", ".gitattributes", ".gitignore", ".cache")
"""What version control and hub downloads keep in a folder: no part of the artifact, and never touched."""


def runtime_model(folder: Path) -> Path | None:
    """Return the file that ONNX Runtime is to load: `model.ort` before the graph; None without either."""
    ort = folder / ORT_MODEL
    return ort if ort.is_file() else onnx_model(folder)


def onnx_model(folder: Path) -> Path | None:
    """Return the only ONNX graph of a folder: `model.onnx`, or that of a part by itself; None where there is none.

    A folder of several graphs is no runtime's model; `compressor.model.parts` lays each part out by itself.
    """
    if (folder / ONNX_MODEL).is_file():
        return folder / ONNX_MODEL
    found = [folder / name for name in GRAPHS if (folder / name).is_file()]
    return found[0] if len(found) == 1 else None
