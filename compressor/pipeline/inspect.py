"""The structure of a model folder or an artifact, from its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.errors import ModelError
from compressor.measure.benchmark import file_bytes
from compressor.model.cost import count_flops, default_length, recorded_layers
from compressor.model.folder import ModelFolder, open_model
from compressor.model.parts import joined_by, parts_of
from compressor.model.source import resolve_path
from compressor.pipeline.laid_out import has_graphs
from compressor.pipeline.place import restore
from compressor.storage.artifact import runtime_model
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json
from compressor.verification import MANIFEST

_INSPECT_TOKENS = 512


def inspect(path: str | Path) -> dict[str, Any]:
    """Return what a model or artifact is: family, task, true widths of every layer, parameters, bytes, FLOPs, verdict.

    Of a model of several parts, `parts` has that of each, and the sizes are their sums.

    Raises:
        ModelError: it is neither, or its family is not covered.
    """
    restore(path)
    folder = resolve_path(str(path))
    towers = parts_of(folder)
    if not towers:
        return _described(path, open_model(path))
    parts = {part: _described(path, open_model(folder, part=part)) for part in towers}
    graphs = has_graphs(folder)
    for part, tower in towers.items():
        names = [name for name in (tower.graph, tower.embeddings) if name is not None]
        files = [file for name in names for file in folder.glob(f"{name}*")] if graphs else []
        size = sum(file.stat().st_size for file in files) if graphs else None
        parts[part] |= {"path": tower.graph if graphs else part, "bytes": size, "verdict": None}
        parts[part]["format"] = "onnx" if graphs else "safetensors"
    sums = {key: sum(found[key] for found in parts.values()) for key in ("parameters", "flops")}
    return {
        "path": str(path),
        "kind": "artifact" if (folder / MANIFEST).is_file() else "model",
        "format": "onnx" if graphs else "safetensors",
        "family": " and ".join(found["family"] for found in parts.values()),
        "task": joined_by(folder).task,
        **sums,
        "bytes": file_bytes(folder),
        "length": max(found["length"] for found in parts.values()),
        "layers": [],
        "verdict": _verdict(folder),
        "parts": parts,
    }


def _described(path: str | Path, model: ModelFolder) -> dict[str, Any]:
    """Return what a model or artifact of one graph is."""
    folder = model.path
    graph = runtime_model(folder)
    length = default_length(model, _INSPECT_TOKENS) if model.family.inputs == "tokens" else 0
    return {
        "path": str(path),
        "kind": "artifact" if (folder / MANIFEST).is_file() else "model",
        "format": graph.suffix.removeprefix(".") if graph else "safetensors",
        "family": model.family.name,
        "task": model.task,
        "parameters": model.parameters,
        "bytes": file_bytes(folder),
        "flops": count_flops(model, length),
        "length": length,
        "hidden_size": model.shapes.hidden_size,
        "head_dim": model.shapes.head_dim,
        "tied": model.blueprint.tied,
        "shortcuts": model.shapes.shortcuts,
        "layers": _layers(model),
        "verdict": _verdict(folder),
    }


def _layers(model: ModelFolder) -> list[dict[str, Any]]:
    from compressor.model.modules import base_of

    skeleton = model.skeleton()
    blocks = base_of(skeleton).get_submodule(model.family.blocks)
    return [
        {"index": index, **recorded, "parameters": sum(int(p.numel()) for p in block.parameters())}
        for index, (recorded, block) in enumerate(zip(recorded_layers(model), blocks.children(), strict=True))
    ]


def _verdict(folder: Path) -> str | None:
    try:
        report = own_file(folder, "report.json")
        return str(read_json(report)["verdict"]) if report is not None else None
    except (ModelError, KeyError):
        return None
