"""Calibration data of a run; for a language model that sees images, prompts with the image encoder's own features."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from compressor.data.kinds import AnswerData, Batches, ImageData, Inputs, Question
from compressor.data.questions import load_answers
from compressor.data.reading import model_batches, text_batch
from compressor.errors import DataError
from compressor.measure.streamed import StreamedRunner
from compressor.model.folder import ModelFolder
from compressor.model.image_places import image_features
from compressor.pipeline.prepare import Prepared
from compressor.storage.tensors import sha256_of

_FEATURES = "features.npy"


def seen_by(prepared: Prepared, made: Mapping[str, ModelFolder]) -> ModelFolder | None:
    """Return which of the models that are made gives the image features that a model reads; None for any other."""
    if prepared.image_token is None:
        return None
    return next(model for model in made.values() if model.family.inputs == "pixels")


def calibration_batches(prepared: Prepared, seen: ModelFolder | None, work: Path, cache_bytes: int) -> Batches:
    """Return the calibration data of a recipe as a model reads them.

    Args:
        prepared: the recipe.
        seen: the image encoder, after its passes, of a language model that sees images; else None.
        work: folder of the run, in which image features are kept.
        cache_bytes: activations that may stay in memory.

    Raises:
        DataError: the data cannot be used.
    """
    request, token = prepared.calibration, prepared.image_token
    if seen is None or token is None or request is None:
        return model_batches(prepared.load_calibration())
    data = load_answers(request, prepared.source.path, seen.path, token)
    longest = max(map(_length, data.questions)) - 1 + image_features(seen)
    limit = int(getattr(prepared.source.config, "max_position_embeddings", None) or longest)
    if longest > limit:
        raise DataError(
            f"{request.key}: a question takes {longest} tokens with its image; the model has {limit} positions",
            hint="Leave out such questions, or keep fewer image tokens.",
        )
    return _mixed(data, _features(data, seen, work, cache_bytes))


def hash_of_seen(seen: ModelFolder) -> dict[str, str]:
    """Name the image encoder whose features a language model was calibrated on, as one of the inputs of a pass."""
    files = sorted({seen.weights.entry(name).file for name in seen.weights.names()})
    stated = json.dumps([seen.stated, [sha256_of(file) for file in files]], sort_keys=True)
    return {"calibration/image features": sha256(stated.encode()).hexdigest()}


def _length(asked: Question) -> int:
    return len(asked.prompt) + len(asked.answer)


def _features(data: AnswerData, seen: ModelFolder, work: Path, cache_bytes: int) -> Any:
    """Return the features [images, features, width] of all images, in a file that is read where it is needed."""
    count = max(asked.image for asked in data.questions) + 1
    runner = StreamedRunner(seen, ImageData(data.images, count), work / "seen", cache_bytes)
    kept, done = None, 0
    for batch in data.images:
        found = runner.forward(batch)
        if kept is None:
            kept = open_memmap(work / _FEATURES, "w+", np.float32, (count, *found.shape[1:]))
        kept[done : done + len(found)] = found
        done += len(found)
    assert kept is not None, "there is a question, and so an image"
    return kept


def _mixed(data: AnswerData, features: Any) -> Batches:
    """Return prompts with their answers, of which those of one length are together, and the features in them."""
    by_length: dict[tuple[int, int], list[Question]] = {}
    for asked in data.questions:
        by_length.setdefault((_length(asked), asked.prompt.index(data.image_token)), []).append(asked)
    places = features.shape[1]
    groups = []
    for (length, _), questions in sorted(by_length.items()):
        size = text_batch(length - 1 + places)
        groups += [questions[start : start + size] for start in range(0, len(questions), size)]

    def make() -> Iterable[Inputs]:
        for group in groups:
            ids = np.asarray([_spread(asked, data.image_token, places) for asked in group], dtype=np.int64)
            found = np.stack([features[asked.image] for asked in group])
            yield {"input_ids": ids, "image_features": found, "image_places": ids == data.image_token}

    return Batches(make, len(groups))


def _spread(asked: Question, token: int, places: int) -> list[int]:
    """Return the tokens of a prompt and its answer, the image's as often as it has features."""
    place = asked.prompt.index(token)
    return [*asked.prompt[:place], *[token] * places, *asked.prompt[place + 1 :], *asked.answer]
