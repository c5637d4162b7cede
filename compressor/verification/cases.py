"""The probes: what an artifact and the model that it was made from are both run on, seeded, in several shapes.

A graph may be right for short texts and small batches alone (a window, a table of positions that ends too early), so
there is one probe of up to 300 tokens, one that reads a cache of more than 40, and one of 16 samples. Token ids are
drawn without putting any back, so that a small vocabulary is used whole. Images come in blocks, which are like
photographs, and once as independent pixels: only those tell the pixels of a patch apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.kinds import Inputs
from compressor.errors import ModelError
from compressor.measure.benchmark import image_shape
from compressor.measure.runner import Array, Runner, question_width, read_config, stated_family

COLUMNS = 1024
_FEW_COLUMNS = 64
_LONGEST = {"text-generation": 300}
_LONGEST_ENCODER = 512
_IMAGE_BLOCKS = (16, 14, 8, 7, 4, 2, 1)
_TEXT, _QUESTION = "text_features", 6


@dataclass(frozen=True)
class Case:
    """One probe.

    Attributes:
        name: part of the check's name.
        batch: samples.
        chunks: tokens of the successive calls; more than one means a key-value cache in between. Empty for images.
        padding: `none`, `right` or `left`; rows are then padded by different amounts.
        columns: output columns that are recorded, at most.
        pixels: of images: `blocks` of one colour, or `noise`.
        pooled: whether it compares the embeddings of whole samples instead of the hidden states.
    """

    name: str
    batch: int
    chunks: tuple[int, ...] = ()
    padding: str = "none"
    columns: int = COLUMNS
    pixels: str = "blocks"
    pooled: bool = False

    def chosen(self, columns: NDArray[Any]) -> NDArray[Any]:
        """Return those of the recorded output columns that are recorded for this probe, spread over all of them."""
        return columns[:: -(-len(columns) // self.columns)]


DECODER_CASES = (
    Case("prefill", 1, (7,)),
    Case("batch", 3, (19,)),
    Case("padding", 2, (12,), "right"),
    Case("chunked", 1, (9, 5)),
    Case("decode", 2, (6, 1, 1, 1, 1)),
    Case("left_padding", 2, (8, 1, 1, 1), "left"),
    Case("continued", 1, (45, 1, 1, 1), columns=_FEW_COLUMNS),
    Case("wide", 16, (4, 1), columns=_FEW_COLUMNS),
)
ENCODER_CASES = (
    Case("short", 1, (5,)),
    Case("batch", 3, (31,)),
    Case("padding", 2, (16,), "right"),
    Case("wide", 16, (6,), columns=_FEW_COLUMNS),
)
POOLED_CASES = {
    "pixels": (Case("pooled", 3, pooled=True), Case("pooled_pixels", 1, pixels="noise", pooled=True)),
    "tokens": (Case("pooled", 3, (9,), pooled=True), Case("pooled_padding", 3, (14,), "right", pooled=True)),
}
"""For encoders that pool their hidden states themselves, by what they read."""
IMAGE_CASES = (Case("single", 1), Case("batch", 3), Case("wide", 16), Case("pixels", 1, pixels="noise"))


class Tokens:
    """Token ids in a seeded order in which each of the vocabulary comes before any comes twice."""

    def __init__(self, runner: Runner, rng: np.random.Generator) -> None:
        """Take the vocabulary's size from the runner's config.json."""
        self._order = rng.permutation(int(read_config(runner.folder).get("vocab_size") or 2)).astype(np.int64)
        self._taken = 0

    def take(self, batch: int, length: int) -> NDArray[np.int64]:
        """Return the next ids [batch, length]."""
        places = (self._taken + np.arange(batch * length)) % len(self._order)
        self._taken += batch * length
        return self._order[places].reshape(batch, length)


def cases_of(runner: Runner) -> tuple[Case, ...]:
    """Return the probes for a model: those that its positions allow.

    Raises:
        ModelError: they allow none.
    """
    family = stated_family(read_config(runner.folder))
    more = POOLED_CASES[runner.inputs] if family is not None and family.pooled else ()
    if runner.inputs == "pixels":
        return (*IMAGE_CASES, *more)
    cases = DECODER_CASES if runner.task == "text-generation" else (*ENCODER_CASES, *more)
    if family is not None and family.full_length:
        cases = tuple(case for case in cases if case.padding == "none")
    limit = positions(runner)
    if span := image_span(read_config(runner.folder)):
        cases = _with_image(cases, sum(span))
    longest = min(limit, _LONGEST.get(runner.task, _LONGEST_ENCODER))
    fitting = tuple(case for case in cases if sum(case.chunks) <= limit)
    if not fitting:
        raise ModelError(f"{runner.folder}: {limit} positions are too few for a probe")
    return (*fitting, Case("long", 1, (longest,), columns=_FEW_COLUMNS))


def image_span(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return position and number of the image tokens that become fewer inside a language model; None where none do."""
    section = config.get("compression")
    stacks = section.get("stacks") if isinstance(section, dict) else None
    for stack in stacks.values() if isinstance(stacks, dict) else ():
        for entry in stack.get("tokens", ()):
            if entry.get("site") == "llm_layer":
                return int(entry.get("start", 0)), int(entry["count"])
    return None


def rows_of_text(case: Case, span: tuple[int, int]) -> NDArray[np.int64] | slice:
    """Return which rows of a probe's outputs are not of image tokens that become fewer, where any do.

    Where inputs of products are rounded, an image token near a tie gives way to another, and the rows up to the next
    one with it. Without rounding all rows are compared.

    Args:
        case: the probe.
        span: position and number of the image tokens.
    """
    length, (start, count) = sum(case.chunks), span
    if case.padding != "none" or length <= start + count:
        return slice(None)
    places = np.arange(case.batch * length).reshape(case.batch, length)
    return np.delete(places, np.s_[start : start + count], axis=1).ravel()


def _with_image(cases: tuple[Case, ...], end: int) -> tuple[Case, ...]:
    """Return probes of a model whose image tokens become fewer, which end at `end`: no padded call may hold them."""
    kept = tuple(case for case in cases if case.padding == "none" or max(case.chunks) <= end)
    return (*kept, Case("image", 1, (end + 9, 1, 1, 3), columns=_FEW_COLUMNS))


def positions(runner: Runner) -> int:
    """Return how many tokens a model takes."""
    config = read_config(runner.folder)
    # RoBERTa-style positions start after the padding id.
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 20) - 2


def make_probe(runner: Runner, case: Case, tokens: Tokens, rng: np.random.Generator) -> Inputs:
    """Return the inputs of a probe in the form that goes to disk: images without the repeats of their blocks."""
    config = read_config(runner.folder)
    if runner.inputs == "pixels":
        channels, height, width = image_shape(runner.folder)
        question: Inputs = {}
        if case.batch > 1 and (columns := question_width(config)):  # with a question and without one
            question[_TEXT] = rng.standard_normal((case.batch, _QUESTION, columns)).astype(np.float32)
            question[_TEXT][-1, -1] = 0  # a shorter question is padded with zeros
        if case.pixels == "noise":
            noise = [rng.integers(1 << 31), case.batch, channels, height, width]
            return {"noise": np.asarray(noise, np.int64), **question}
        # Seeded noise in blocks: 100 times smaller on disk than pixels, and closer to an image than white noise.
        block = next(b for b in _IMAGE_BLOCKS if height % b == 0 and width % b == 0)
        small = rng.standard_normal((case.batch, channels, height // block, width // block)).astype(np.float32)
        return {"blocks": small, "block": np.asarray([block], np.int64), **question}
    length = sum(case.chunks)
    ids = tokens.take(case.batch, length)
    mask = np.ones_like(ids)
    for row in range(1, case.batch):
        # Half of the first chunk: a padded row keeps real tokens in every call.
        cut = case.chunks[0] // 2 + row - 1
        if case.padding == "right":
            mask[row, length - cut :] = 0
        elif case.padding == "left":
            mask[row, :cut] = 0
    end = config.get("eos_token_id")
    if case.pooled and isinstance(end, int):  # the place that some encoders take the embedding from
        ids[np.arange(case.batch), mask.sum(axis=1) - 1] = end
    inputs: Inputs = {"input_ids": ids, "attention_mask": mask}
    if int(config.get("type_vocab_size") or 0) > 1 and runner.task != "text-generation":
        inputs["token_type_ids"] = (np.arange(length)[None].repeat(case.batch, 0) >= length // 2).astype(np.int64)
    return inputs


def restore(stored: Inputs) -> Inputs:
    """Return the inputs of a model from the form that goes to disk."""
    beside = {_TEXT: stored[_TEXT]} if _TEXT in stored else {}
    if "noise" in stored:
        seed, *shape = (int(number) for number in stored["noise"])
        return {"pixel_values": _noise(seed, shape), **beside}
    if "blocks" not in stored:
        return stored
    block = int(stored["block"][0])
    return {"pixel_values": stored["blocks"].repeat(block, axis=2).repeat(block, axis=3), **beside}


def _noise(seed: int, shape: list[int]) -> Array:
    """Return seeded pixels of mean 0 and variance 1, all independent; the same ones from every release of numpy."""
    # Of numpy's streams, only the raw bits of a generator are promised never to change.
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape))) >> np.uint64(40)
    return ((bits.astype(np.float64) / 2**23 - 1) * 3**0.5).astype(np.float32).reshape(shape)
