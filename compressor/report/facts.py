"""What an artifact folder holds, as far as the model card needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.errors import ModelError
from compressor.storage.json_files import read_json


@dataclass(frozen=True)
class ArtifactFacts:
    """What an artifact folder holds.

    Attributes:
        format: of the model file.
        genai: whether onnxruntime-genai can load the folder.
        portable: whether the decoder graph is the portable one (it takes position ids).
        shaped: whether widths differ by layer, so that config.json has a `compression` section.
        decoder: whether the model generates text.
    """

    format: Literal["onnx", "safetensors"]
    genai: bool = False
    portable: bool = False
    shaped: bool = False
    decoder: bool = False

    @classmethod
    def of(cls, folder: Path, task: str) -> ArtifactFacts:
        """Read the facts from a folder; what is missing or damaged there counts as absent."""
        genai = _read(folder / "genai_config.json")
        inputs = genai.get("model", {}).get("decoder", {}).get("inputs", {})
        return cls(
            format="onnx" if (folder / "model.onnx").is_file() else "safetensors",
            genai=bool(genai),
            portable="position_ids" in inputs,
            shaped="compression" in _read(folder / "config.json"),
            decoder=task == "text-generation",
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except ModelError:
        return {}
