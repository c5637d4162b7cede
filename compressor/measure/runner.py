"""One face for PyTorch and ONNX Runtime: numpy in, numpy out, a fixed number of threads, CPU.

Decoders take `input_ids` and `attention_mask` and return logits [B, T, V]; their key-value cache is an opaque object
that `extend` returns and takes back. Encoders return `last_hidden_state` [B, T, H], classifiers logits [B, C].
`attention_mask` and `token_type_ids` are filled in (ones, zeros) when a model needs them and they are not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from compressor.architectures import OWN_TYPE, Family, family_named
from compressor.architectures.tasks import stated_task
from compressor.data.kinds import Ids, Inputs
from compressor.errors import ModelError, brief
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json

Array: TypeAlias = NDArray[np.float32]
Past: TypeAlias = Any
"""A runner's own key-value cache: made by `extend`, read by nobody else."""


class Runner(Protocol):
    """A loaded model that can be evaluated and timed.

    Attributes:
        folder: where it was loaded from.
        task: a name in `compressor.architectures.tasks.TASKS`.
        left_padding: whether a decoder gives right results for left-padded batches.
        inputs: what it reads, `tokens` or `pixels`.
    """

    @property
    def folder(self) -> Path: ...  # noqa: D102

    @property
    def task(self) -> str: ...  # noqa: D102

    @property
    def left_padding(self) -> bool: ...  # noqa: D102

    @property
    def inputs(self) -> str: ...  # noqa: D102

    def forward(self, inputs: Inputs) -> Array:
        """Return logits [B, T, V] or [B, C], or the last hidden state [B, T, H]."""

    def pooled(self, inputs: Inputs) -> Array | None:
        """Return the embeddings [B, E] that an encoder makes of whole samples by itself; None where it makes none."""

    def extend(self, inputs: Inputs, past: Past | None = None) -> tuple[Array, Past]:
        """Run a decoder on tokens [B, S] after `past`; the mask covers past and new tokens [B, P + S].

        Returns:
            Logits [B, S, V] and the cache that now covers P + S positions.
        """

    def generate(self, ids: Ids, new_tokens: int) -> Ids:
        """Return the `new_tokens` [B, new_tokens] that greedy decoding appends to unpadded `ids` [B, T]."""


def complete(inputs: Inputs, wanted: set[str], past: int = 0) -> Inputs:
    """Keep the inputs that a model wants and add mask, positions and token types that it needs.

    Positions count the unmasked tokens of a row, so they are right for padding on either side.
    """
    given = {name: value for name, value in inputs.items() if name in wanted}
    if "input_ids" not in inputs:
        return given
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = np.ones((ids.shape[0], past + ids.shape[1]), np.int64)
    if "attention_mask" in wanted:
        given["attention_mask"] = mask
    if "position_ids" in wanted and "position_ids" not in given:
        positions = np.maximum(mask.astype(np.int64).cumsum(axis=1) - 1, 0)
        given["position_ids"] = positions[:, -ids.shape[1] :]
    if "token_type_ids" in wanted and "token_type_ids" not in given:
        given["token_type_ids"] = np.zeros_like(ids)
    return given


def question_width(config: Mapping[str, Any]) -> int:
    """Return the width of the `text_features` that a model reads beside its image, by config.json; 0: it reads none."""
    section = config.get("compression")
    stacks = section.get("stacks") if isinstance(section, dict) else None
    parts = (
        [part.get("tokens") for part in stacks.values() if isinstance(part, dict)] if isinstance(stacks, dict) else []
    )
    entries = [entry for part in parts if isinstance(part, list) for entry in part if isinstance(entry, dict)]
    width = config.get("projection_size")
    return width if isinstance(width, int) and any(entry.get("select") == "coverage" for entry in entries) else 0


def greedy(runner: Runner, ids: Ids, new_tokens: int) -> Ids:
    """Return the `new_tokens` most likely tokens [B, new_tokens] after unpadded `ids` [B, T], one at a time."""
    made: list[Ids] = []
    step: Ids = ids.astype(np.int64)
    past: Past | None = None
    for count in range(new_tokens):
        mask = np.ones((ids.shape[0], ids.shape[1] + count), np.int64)
        logits, past = runner.extend({"input_ids": step, "attention_mask": mask}, past)
        step = logits[:, -1].argmax(axis=-1)[:, None].astype(np.int64)
        made.append(step)
    return np.concatenate(made, axis=1) if made else np.zeros((ids.shape[0], 0), np.int64)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json.

    Raises:
        ModelError: it is missing or is not a JSON object.
    """
    file = own_file(folder, "config.json")
    if file is None:
        raise ModelError(f"{folder}: no config.json there", hint="A model folder holds config.json.")
    return read_json(file)


def stated_family(config: dict[str, Any]) -> Family | None:
    """Return the table of the family that config.json states; None for one that is not covered."""
    try:
        return family_named(str(config.get("model_type")).removeprefix(OWN_TYPE))
    except ModelError:
        return None


def task_of(config: dict[str, Any]) -> str:
    """Return the task that the class named in `architectures` serves; an encoder body has none of its own.

    Raises:
        ModelError: `architectures` is no list of names.
    """
    stated = config.get("architectures") or [""]
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise ModelError(f"config.json: architectures is {brief(stated)}; allowed: a list of class names")
    return stated_task(stated[:1]) or "feature-extraction"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to a sane length; the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
