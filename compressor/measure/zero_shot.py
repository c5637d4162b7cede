"""Zero-shot classification: an image is of the class whose prompts' embedding is nearest to its own.

score = exp(logit_scale) · cos(image, class) + logit_bias, with the class embedding the mean of its prompts' embeddings
at length one, itself at length one (Radford et al. 2021, arXiv:2103.00020, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compressor.data.kinds import Batches, LabelData
from compressor.data.zero_shot import Prompts
from compressor.measure.embedding import open_embedder, unit
from compressor.measure.heads import measure_labels
from compressor.measure.runner import Array, Runner
from compressor.measure.scores import Quality
from compressor.measure.statistics import F64, Ratio, Statistic, value_of


@dataclass(frozen=True)
class TwoTowers:
    """A model of an image tower and a text tower.

    Attributes:
        image: runs the image tower.
        text: runs the text tower.
        scalars: `logit_scale`, the logarithm of the factor, and `logit_bias` where the model has one.
    """

    image: Runner
    text: Runner
    scalars: Mapping[str, float]

    def embeddings(self, images: Batches, prompts: Prompts) -> tuple[F64, F64]:
        """Return the embeddings of images [N, E] and of prompts [P, E], of any length."""
        return _embeddings(self.image, images), _embeddings(self.text, prompts.batches)


def joined(images: F64, classes: F64, scalars: Mapping[str, float]) -> Array:
    """Return the scores [N, C] for embeddings of images [N, E] and of classes [C, E], of any length."""
    factor = np.exp(scalars["logit_scale"])
    with np.errstate(invalid="ignore"):
        scores = factor * (unit(images) @ unit(classes).T) + scalars.get("logit_bias", 0.0)
    return np.asarray(scores, dtype=np.float32)


def _embeddings(runner: Runner, batches: Batches) -> F64:
    embedder = open_embedder(runner.folder)
    return np.concatenate([embedder.embed(runner, batch) for batch in batches])


def class_embeddings(texts: F64, owners: NDArray[np.int64]) -> F64:
    """Return the embedding [C, E] of each class: the mean of those of its prompts [P, E], each at length one.

    Args:
        texts: embeddings of the prompts.
        owners: class of each prompt [P].
    """
    found = unit(texts)
    return np.stack([found[owners == place].mean(axis=0) for place in range(int(owners.max()) + 1)])


def measure_zero_shot(ours: TwoTowers, dense: TwoTowers | None, data: LabelData, prompts: Prompts) -> Quality:
    """Measure accuracy and, beside a dense model, agreement with it, KL divergence from it, and cosines to it.

    Raises:
        DataError: there is a label without a prompt.
    """

    def scores(model: TwoTowers, images: F64, texts: F64) -> Array:
        return joined(images, class_embeddings(texts, prompts.owners), model.scalars)

    found = ours.embeddings(data.batches, prompts)
    if dense is None:
        return measure_labels(scores(ours, *found), None, data)
    theirs = dense.embeddings(data.batches, prompts)
    quality = measure_labels(scores(ours, *found), scores(dense, *theirs), data)
    cosines: dict[str, Statistic] = {}
    for name, a, b in zip(("cosine_vision", "cosine_text"), found, theirs, strict=True):
        cosines[name] = Ratio((unit(a) * unit(b)).sum(axis=1), np.ones(len(a)))
    return replace(
        quality,
        ours={**quality.ours, **{name: value_of(statistic) for name, statistic in cosines.items()}},
        # Intervals are drawn over images: prompts are others, and not as many.
        ours_statistics={**quality.ours_statistics, "cosine_vision": cosines["cosine_vision"]},
    )
