"""A runner over a model that never lies in memory whole: outputs come from the block walk, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compressor.data.kinds import EvalData, Ids, Inputs, TextData
from compressor.data.reading import model_batches
from compressor.errors import UsageError
from compressor.measure.evaluation import measure
from compressor.measure.runner import Array, Past
from compressor.measure.scores import Quality
from compressor.model.folder import ModelFolder
from compressor.walk import Walk


class StreamedRunner:
    """Gives the outputs for one data set, in its order, once; enough for `compressor.measure.evaluation.measure`."""

    left_padding = False

    def __init__(self, model: ModelFolder, data: EvalData, work: Path, cache_bytes: int) -> None:
        """Prepare a walk over `data`; the blocks run when the first output is asked for."""
        batches = model_batches(data, size=1) if isinstance(data, TextData) else model_batches(data)
        self._model = model
        self._outputs: Iterator[Array] = Walk(model, batches, work=work, cache_bytes=cache_bytes).outputs()

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self._model.path

    @property
    def task(self) -> str:
        """The model's task."""
        return self._model.task

    def forward(self, inputs: Inputs) -> Array:
        """Return the outputs of the next samples, as many as `inputs` holds.

        Raises:
            UsageError: more outputs are asked for than the data set has.
        """
        wanted = len(next(iter(inputs.values())))
        parts: list[Array] = []
        while sum(len(part) for part in parts) < wanted:
            part = next(self._outputs, None)
            if part is None:
                raise UsageError("a streamed model was asked for more outputs than its data set has samples")
            parts.append(part)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    @property
    def inputs(self) -> str:
        """What the model reads."""
        return self._model.family.inputs

    def pooled(self, inputs: Inputs) -> Array | None:
        """Return the embeddings of the next samples of an encoder that pools by itself; None for any other."""
        return self.forward(inputs) if self._model.family.pooled else None

    def extend(self, inputs: Inputs, past: Past | None = None) -> tuple[Array, Past]:
        """Refuse: a streamed model keeps no cache."""
        raise UsageError("a streamed model cannot decode step by step")

    def generate(self, ids: Ids, new_tokens: int) -> Ids:
        """Refuse: a streamed model keeps no cache."""
        raise UsageError("a streamed model cannot generate")


def measure_streamed(model: ModelFolder, dense: ModelFolder, data: EvalData, work: Path, cache_bytes: int) -> Quality:
    """Measure `model` against `dense` on `data` with a few blocks of each in memory at a time."""
    half = cache_bytes // 2
    return measure(
        StreamedRunner(model, data, work / "model", half), data, StreamedRunner(dense, data, work / "dense", half)
    )
