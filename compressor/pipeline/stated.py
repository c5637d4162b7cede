"""What an artifact states of itself: its recipe, and by it the bounds and the data that it is judged with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.architectures import read_by
from compressor.data.reading import DataRequest, find_data
from compressor.errors import CompressorError, DataError, ModelError, RecipeError, VerificationError
from compressor.model.cost import default_length
from compressor.model.folder import open_model
from compressor.model.parts import parts_of
from compressor.passes import method_options
from compressor.pipeline.as_run import RECIPE
from compressor.recipe import ExportSection, ModelSection, load_bounds, load_recipe
from compressor.storage.files import own_file
from compressor.verification.manifest import read_manifest


def own_sections(artifact: Path) -> tuple[ModelSection, ExportSection]:
    """Return how the recipe of an artifact, overrides included, opened its model and exported it; else the defaults."""
    recipe = manifest_of(artifact).get("recipe")
    stated = recipe if isinstance(recipe, dict) else {}
    try:
        return ModelSection(**stated.get("model") or {}), ExportSection(**stated.get("export") or {})
    except (TypeError, ValueError):  # of another release
        return ModelSection(), ExportSection()


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return compression.json where it can be read; verification says what is wrong with it where it cannot."""
    try:
        return read_manifest(folder)
    except ModelError:
        return {}


def own_recipe(artifact: Path) -> Path | None:
    """Return the recipe in an artifact; None where it is none of its files, of which verification says so."""
    try:
        return own_file(artifact, RECIPE)
    except ModelError:
        return None


def bounds_for(artifact: Path, file: Path | None, *, with_recipe: bool) -> dict[str, dict[str, float]]:
    """Return the bounds of a file, else those of the artifact's own recipe where it counts, else none."""
    own = own_recipe(artifact)
    if file is not None:
        return {name: bound.to_json() for name, bound in load_bounds(file).items()}
    if not with_recipe or own is None:
        return {}
    try:
        return {name: bound.to_json() for name, bound in load_bounds(own).items()}
    except RecipeError as error:
        raise VerificationError(error.message, hint="Give the bounds with --bounds FILE.") from error


def evaluation_data(
    artifact: Path, data: str | None, *, with_recipe: bool
) -> tuple[DataRequest | None, tuple[str, ...]]:
    """Return what to evaluate on, and the metrics: what the user says, else what the artifact's recipe says."""
    section = None
    own = own_recipe(artifact)
    if own is not None and (with_recipe or data is not None):
        with contextlib.suppress(RecipeError):  # of another release: its bounds were read, its passes are not needed
            section = load_recipe(own, options=method_options()).evaluation
    samples, length = (section.samples, section.length) if section is not None else (None, 512)
    source = data or (section.data if section is not None and with_recipe else None)
    if source is None:
        return None, ()
    with contextlib.suppress(CompressorError):  # verification says what is wrong with the artifact
        length = default_length(open_model(artifact), length)
    # A recipe as run has paths as one saw them from the working folder, which often is the one that holds the artifact.
    bases = (Path.cwd(), artifact, artifact.resolve().parent)
    request = DataRequest(source, bases, samples, length, 0, "evaluation")
    try:
        find_data(request)
    except DataError as error:
        error.hint = f"{error.hint}. Go to the folder in which the run was started, or give --data PATH."
        raise
    return request, tuple(section.metrics) if section is not None and data is None else ()


def passes_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the methods that the artifact says were applied."""
    entries = manifest.get("passes")
    if not isinstance(entries, list):
        return ()
    return tuple(str(entry.get("name")) for entry in entries if isinstance(entry, dict))


def prompts_for(artifact: Path, images: DataRequest, prompts: str | None = None) -> DataRequest | None:
    """Return the prompts of the labels of images: the user's, else those of the recipe of an artifact; else None.

    Args:
        artifact: of several graphs.
        images: the request for the images.
        prompts: what the user says.
    """
    own = own_recipe(artifact) if prompts is None else None
    if own is not None:
        with contextlib.suppress(RecipeError):  # of another release
            section = load_recipe(own, options=method_options()).evaluation
            prompts = section.prompts if section is not None else None
    if prompts is None:
        return None
    length = images.length
    for part, tower in parts_of(artifact).items():
        if read_by(tower) == "tokens":
            with contextlib.suppress(CompressorError):  # verification says what is wrong with the artifact
                length = default_length(open_model(artifact, part=part), length)
    request = replace(images, data=prompts, field="prompts", samples=None, length=length)
    find_data(request)
    return request
