"""What an artifact folder holds, as far as the model card needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.architectures import EMBEDDINGS, Family, Tower, family_named
from compressor.errors import ModelError
from compressor.measure.runner import question_width, stated_family
from compressor.model.parts import joined_by, parts_of
from compressor.storage.artifact import runtime_model
from compressor.storage.companions import MODULES
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
        graph: name of the file that ONNX Runtime loads.
        embeddings: name of the graph that embeds tokens for that one; empty where that one takes tokens.
        sentences: whether sentence-transformers knows the folder as a sentence encoder.
        grey: whether an image model takes images of one channel.
        pixels: whether the model reads images.
        question: width of the embeddings of a question that it reads beside an image; 0: it reads none.
        kind: class of transformers that loads the model, where it is not the one of its task.
        full_length: whether texts are padded to all the positions of the model.
        graphs: of a model of several parts, the files of their graphs and the outputs that hold their embeddings.
        seeing: whether one of them gives image features that another one reads in its prompts.
    """

    format: Literal["onnx", "safetensors"]
    genai: bool = False
    portable: bool = False
    shaped: bool = False
    decoder: bool = False
    graph: str = "model.onnx"
    embeddings: str = ""
    sentences: bool = False
    grey: bool = False
    pixels: bool = False
    question: int = 0
    kind: str = ""
    full_length: bool = False
    graphs: tuple[tuple[str, str], ...] = ()
    seeing: bool = False

    @classmethod
    def of(cls, folder: Path, task: str) -> ArtifactFacts:
        """Read the facts from a folder; what is missing or damaged there counts as absent."""
        genai = _read(folder / "genai_config.json")
        inputs = genai.get("model", {}).get("decoder", {}).get("inputs", {})
        graph, config = runtime_model(folder), _read(folder / "config.json")
        towers = [tower for tower in parts_of(folder).values() if (folder / tower.graph).is_file()]
        family, stated = stated_family(config), (config.get("architectures") or [""])[0]
        return cls(
            format="onnx" if graph is not None or towers else "safetensors",
            genai=bool(genai),
            portable="position_ids" in inputs,
            shaped="compression" in config,
            decoder=task == "text-generation",
            graph=graph.name if graph is not None else "model.onnx",
            embeddings=EMBEDDINGS.get(graph.name, "") if graph is not None else "",
            sentences=task == "feature-extraction" and (folder / MODULES).is_file(),
            grey=config.get("num_channels") == 1,
            pixels="image_size" in config,
            question=question_width(config),
            kind=stated if family is not None and stated in family.bodies else "",
            full_length=any(f is not None and f.full_length for f in (family, *(_family(tower) for tower in towers))),
            graphs=tuple((tower.graph, tower.embedding) for tower in towers),
            seeing=bool(towers) and joined_by(folder).image_token is not None,
        )


def _family(tower: Tower) -> Family | None:
    return family_named(tower.model_type) if tower.model_type is not None else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except ModelError:
        return {}
