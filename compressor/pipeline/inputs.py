"""What a run depends on, as hashes: the model's files and the data, and of these what a pass depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from compressor.architectures.tasks import Head
from compressor.data.questions import question_file, read_questions
from compressor.data.reading import LABELS, DataRequest, find_data, image_table
from compressor.passes.apply import fingerprint_environment
from compressor.pipeline.prepare import Prepared
from compressor.storage.companions import companion_files
from compressor.storage.tensors import sha256_of

_MODEL, _CALIBRATION, _EVALUATION = "model/", "calibration/", "evaluation/"


def input_hashes(prepared: Prepared) -> dict[str, str]:
    """Return sha256 of everything that the result depends on: `model/…`, `calibration/…` and `evaluation/…`.

    An image folder, whose name ends with `/`, has one hash of its labels and of every file that they name.

    Raises:
        ModelError: the checkpoint is missing or damaged.
        DataError: data is missing, or the labels of images cannot be read.
    """
    source = prepared.source
    weights = {source.weights.entry(name).file for name in source.weights.names()}
    beside = [source.path / name for name in companion_files(source.path)]
    hashes = {f"{_MODEL}{file.name}": sha256_of(file) for file in sorted(weights)}
    for file in (source.path / "config.json", *beside):
        hashes[f"{_MODEL}{file.relative_to(source.path).as_posix()}"] = sha256_of(file)
    for prefix, request in ((_CALIBRATION, prepared.calibration), (_EVALUATION, prepared.evaluation)):
        if request is not None:
            path = find_data(request)
            if request.prompt is not None:
                hashes[f"{prefix}{path.name}/"] = _hash_of_questions(request)
            elif source.family.inputs == "pixels":
                hashes[f"{prefix}{path.name}/"] = _hash_of_images(request, path, source.head)
            elif path.is_file():
                hashes[f"{prefix}{path.name}"] = sha256_of(path)
    return hashes


def _hash_of_images(request: DataRequest, path: Path, head: Head | None) -> str:
    """Return sha256 over the labels and the images that they name; `path` is their folder or they."""
    labels = path / LABELS if path.is_dir() else path
    if head is not None and not labels.is_file():
        return ""  # what is wrong with it is said when it is read
    digest = hashlib.sha256(labels.read_bytes() if labels.is_file() else b"")
    where, table = image_table(path, request.key, head)
    root = Path(os.path.realpath(where))
    for name in sorted({name for (name,) in table.texts}):
        file = Path(os.path.realpath(root / name))
        if file.is_relative_to(root) and os.path.isfile(file):
            digest.update(f"\n{name} {sha256_of(file)}".encode())
    return digest.hexdigest()


def _hash_of_questions(request: DataRequest) -> str:
    """Return sha256 over questions, the images that they are about, and how they are put."""
    digest = hashlib.sha256(question_file(request).read_bytes() + (request.prompt or "").encode())
    for image in sorted({asked.image for asked in read_questions(request)}):
        digest.update(f"\n{image.name} {sha256_of(image)}".encode())
    return digest.hexdigest()


def source_basis(prepared: Prepared, hashes: Mapping[str, str]) -> str:
    """Name everything that the source gate's result depends on."""
    basis = {"model": _of_model(prepared, hashes), "environment": fingerprint_environment()}
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()


def dense_basis(prepared: Prepared, hashes: Mapping[str, str]) -> str:
    """Name everything that the export of the model as it came depends on."""
    return json.dumps(
        {
            "model": _of_model(prepared, hashes),
            "export": prepared.recipe.export.model_dump(mode="json"),
            "processor": prepared.target.processor,
            "environment": fingerprint_environment(),
        },
        sort_keys=True,
    )


def pass_fingerprint(prepared: Prepared, hashes: Mapping[str, str], index: int, device: str) -> str:
    """Name everything that the result of pass `index` depends on.

    Args:
        prepared: the recipe bound to its model.
        hashes: of the inputs, as `input_hashes` has them.
        index: of the pass.
        device: torch device that computes.
    """
    recipe, request = prepared.recipe, prepared.calibration
    calibration = None
    if request is not None and prepared.uses_calibration:
        data = {name: value for name, value in hashes.items() if name.startswith(_CALIBRATION)}
        calibration = [data, request.samples, request.length, request.seed]
    basis = {
        "model": _of_model(prepared, hashes),
        "calibration": calibration,
        "passes": [[entry.name, entry.options.model_dump(mode="json")] for entry in recipe.passes[: index + 1]],
        "format": recipe.export.format,
        "processor": prepared.target.processor,
        "device": device,
        "environment": fingerprint_environment(),
    }
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()


def _of_model(prepared: Prepared, hashes: Mapping[str, str]) -> list[object]:
    """Return the hashes of the model's files, and how they are read."""
    files = {name: value for name, value in hashes.items() if name.startswith(_MODEL)}
    section = prepared.recipe.model
    return [files, prepared.source.task, section.dtype, *([section.part] if section.part is not None else [])]
