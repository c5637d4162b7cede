"""How many places a prompt has for the features of an image, as a LLaVA model's processor is told.

Hugging Face's `LlavaProcessor` counts patches and adds what `num_additional_image_tokens` says, less one for the class
token. With a patch as large as the image, that is the number stated: any number of features, and no code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.model.cost import layer_dimensions
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json

if TYPE_CHECKING:
    from compressor.model.folder import ModelFolder

PROCESSOR = "processor_config.json"
_PATCH = "patch_size"
_TEXT = 32
"""Tokens of a prompt beside its image, where its work and its speed are stated."""


def image_features(model: ModelFolder) -> int:
    """Return how many features the image part of a LLaVA model gives for each image."""
    behind, leading = model.blueprint.output_reduction, model.family.leading_tokens
    tokens = layer_dimensions(model)[-1]["tokens"] if behind is None else behind.keep
    return int(tokens) - (leading if model.config.vision_feature_select_strategy == "default" else 0)


def prompt_lengths(dense: ModelFolder, ours: ModelFolder, language: ModelFolder) -> tuple[int, int]:
    """Return how many tokens a prompt with one image and a few words has, before image tokens go and after.

    Args:
        dense: the image encoder as it came.
        ours: the same after its passes.
        language: the language model that reads the features; its positions are the limit.
    """
    before, after = image_features(dense), image_features(ours)
    limit = int(getattr(language.config, "max_position_embeddings", None) or before + _TEXT)
    length = min(before + _TEXT, limit)
    return length, max(1, length - (before - after))


def with_places(settings: dict[str, Any], model: ModelFolder) -> dict[str, Any]:
    """Return a processor's settings with as many places as a model gives features; as they are where no token goes."""
    if model.family.selector is None or not model.blueprint.reductions or _PATCH not in settings:
        return settings
    count = {_PATCH: model.config.image_size, "num_additional_image_tokens": image_features(model)}
    return {**settings, **count, "vision_feature_select_strategy": "default"}


def state_places(model: ModelFolder) -> None:
    """Let the processor in a model's folder make as many places as the model gives features.

    Raises:
        ModelError: its settings cannot be read.
    """
    file = own_file(model.path, PROCESSOR)
    if file is not None:
        stated = read_json(file)
        told = with_places(stated, model)
        if told != stated:
            file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def told_alike(folder: Path, dense: Path, model: ModelFolder) -> bool:
    """Tell whether a folder's processor is the dense model's, but for the places that the model in the folder needs.

    Raises:
        ModelError: settings cannot be read.
    """
    files = [own_file(place, PROCESSOR) for place in (folder, dense)]
    ours, theirs = (read_json(file) if file is not None else None for file in files)
    return theirs is not None and ours == with_places(theirs, model)


def features_in_prompt(model: ModelFolder) -> int | None:
    """Return how many image tokens a prompt of a LLaVA model's language part has; None where its folder does not say.

    Raises:
        ModelError: the image part of the model cannot be read.
    """
    from compressor.model.folder import open_model

    return image_features(open_model(model.path, part="vision")) if model.part == "language" else None
