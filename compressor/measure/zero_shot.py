"""Zero-shot classification: an image is of the class whose prompts' embedding is nearest to its own.

score = exp(logit_scale) · cos(image, class) + logit_bias, with the class embedding the mean of its prompts' embeddings
at length one, itself at length one (Radford et al. 2021, arXiv:2103.00020, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compressor.data.kinds import Batches, LabelData
from compressor.data.zero_shot import Prompts
from compressor.measure.embedding import open_embedder, unit
from compressor.measure.heads import measure_labels
from compressor.measure.runner import Array, Runner
from compressor.measure.scores import Quality
from compressor.measure.statistics import F64


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

    def scores(self, images: Batches, prompts: Prompts) -> Array:
        """Return the scores [N, C] of images for the classes of prompts."""
        return self.joined(embeddings(self.image, images), class_embeddings(self.text, prompts))

    def joined(self, images: F64, classes: F64) -> Array:
        """Return the scores [N, C] for embeddings of images [N, E] and of classes [C, E], of any length."""
        factor = np.exp(self.scalars["logit_scale"])
        with np.errstate(invalid="ignore"):
            scores = factor * (unit(images) @ unit(classes).T) + self.scalars.get("logit_bias", 0.0)
        return np.asarray(scores, dtype=np.float32)


def embeddings(runner: Runner, batches: Batches) -> F64:
    """Return the embeddings [N, E] of all samples."""
    embedder = open_embedder(runner.folder)
    return np.concatenate([embedder.embed(runner, batch) for batch in batches])


def class_embeddings(runner: Runner, prompts: Prompts) -> F64:
    """Return the embedding [C, E] of each class: the mean of those of its prompts, each at length one."""
    found = unit(embeddings(runner, prompts.batches))
    return np.stack([found[prompts.owners == place].mean(axis=0) for place in range(len(prompts.labels))])


def measure_zero_shot(ours: TwoTowers, dense: TwoTowers | None, data: LabelData, prompts: Prompts) -> Quality:
    """Measure accuracy and, beside a dense model, agreement with it and KL divergence from it.

    Raises:
        DataError: there is a label without a prompt.
    """
    theirs = dense.scores(data.batches, prompts) if dense is not None else None
    return measure_labels(ours.scores(data.batches, prompts), theirs, data)
