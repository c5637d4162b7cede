"""Greedy samples: how the dense model and the artifact go on from the same prompts, for people to read.

Metrics say how far apart two models are, not what that looks like. A prompt is the beginning of an evaluation sample;
each model appends its most likely token again and again, in the runtime of the artifact, until a text ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.kinds import EvalData, TextData
from compressor.data.preprocessors import load_tokenizer
from compressor.machine.shortage import raise_shortage
from compressor.measure.runner import Runner, read_config
from compressor.verification.cases import positions

PROMPTS = 3
PROMPT_TOKENS = 24
NEW_TOKENS = 32


@dataclass(frozen=True)
class Continuation:
    """One prompt and what both models made of it.

    Attributes:
        prompt: the beginning of an evaluation sample.
        dense: the text that the dense model appends.
        compressed: the text that the artifact appends.
        tokens: how many tokens the longer one has.
        differs_at: the first token in which they differ, counted from 1; None where they are equal.
    """

    prompt: str
    dense: str
    compressed: str
    tokens: int
    differs_at: int | None


def continuations(runner: Runner, dense: Runner, data: EvalData) -> list[dict[str, Any]]:
    """Return `Continuation`s as JSON values, for evenly spread samples; none where the models do not generate text.

    Args:
        runner: of the artifact.
        dense: of the dense model.
        data: what both are evaluated on.
    """
    if runner.task != "text-generation" or not isinstance(data, TextData):
        return []
    chosen = np.linspace(0, len(data), min(PROMPTS, len(data)), endpoint=False).astype(np.int64)
    prompts = data.windows[chosen, : min(PROMPT_TOKENS, data.windows.shape[1] // 2)]
    room = min(positions(runner), positions(dense)) - prompts.shape[1]
    if prompts.shape[1] == 0 or room < 1:
        return []
    try:
        made = [side.generate(prompts, min(NEW_TOKENS, room)) for side in (dense, runner)]
    except Exception as error:  # a graph that cannot go on from a cache fails `parity.greedy`, or has none
        raise_shortage(error)
        return []
    return told(dense.folder, zip(prompts.tolist(), made[0].tolist(), made[1].tolist(), strict=True))


def told(folder: Path, samples: Iterable[tuple[list[int], list[int], list[int]]]) -> list[dict[str, Any]]:
    """Return the continuations of prompts as text, each up to the end that a model gave it.

    Args:
        folder: with the tokenizer.
        samples: tokens of prompts, of what the dense model appends, and of what the artifact appends.
    """
    tokenizer = load_tokenizer(folder, folder.name)
    stated = read_config(folder).get("eos_token_id")
    ends = {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id}

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    found = []
    for prompt, *sides in samples:
        begun = text(prompt)
        first, second = (_ended(side, ends) for side in sides)
        # Together with the prompt: some tokenizers drop the space that a text begins with.
        dense, compressed = (text([*prompt, *side]).removeprefix(begun) for side in (first, second))
        place = first_difference(first, second)
        found.append(asdict(Continuation(begun, dense, compressed, max(len(first), len(second)), place)))
    return found


def _ended(tokens: list[int], ends: set[int | None]) -> list[int]:
    """Return the tokens up to the first that ends a text, with it."""
    stop = next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tokens[:stop]


def first_difference(first: list[int], second: list[int]) -> int | None:
    """Return the place of the first token in which two texts differ, counted from 1; None where they are equal."""
    if first == second:
        return None
    pairs = enumerate(zip(first, second, strict=False), 1)
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)) + 1)
