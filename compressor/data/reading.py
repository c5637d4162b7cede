"""From files to model inputs: text windows, sentence pairs, labelled sentences and images.

Calibration data and evaluation data are read by the same functions. Too little data is an error, never a silent repeat.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compressor.architectures import family_named
from compressor.architectures.tasks import Head, head_of
from compressor.data.corpus import Corpus
from compressor.data.images import check_images, open_images, pixels
from compressor.data.kinds import (
    AnswerData,
    Batches,
    EvalData,
    ImageData,
    Inputs,
    LabelData,
    PairData,
    SentenceData,
    SetData,
    TextData,
    ValueData,
)
from compressor.data.preprocessors import library_calls, load_tokenizer
from compressor.data.tables import Sentences, read_labels, read_sentences
from compressor.data.texts import read_lines
from compressor.data.windows import Windows
from compressor.errors import DataError
from compressor.storage.sentence import SentenceEncoder, read_sentence_encoder

TEXT_BATCH_TOKENS = 512
"""Tokens of a calibration batch: matrices are then busy, and a batch's activations are small beside a block."""
SENTENCE_BATCH = 32
_CHARACTERS_PER_TOKEN = 1000
"""More of a sentence than that many for each token that it may have is not tokenised."""
IMAGE_BATCH = 16
LABELS = "labels.csv"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Endings of the files that are images, in a folder without labels."""

Purpose = Literal["calibration", "evaluation"]


@dataclass(frozen=True)
class DataRequest:
    """What to read.

    Attributes:
        data: path as the recipe states it, or `demo:train` / `demo:valid`.
        bases: folders against which a relative path is tried, in order.
        samples: how many windows, sentences or images; None takes all.
        length: tokens per window or at most per sentence.
        seed: for the choice of calibration samples.
        purpose: calibration draws at random offsets, evaluation reads from the start without overlap.
        trust_remote_code: whether the recipe asks for code of the model folder by name.
        field: key of the recipe's section that names the data.
        prompt: how a question about an image is put to a model, with `{question}` for it, or empty for the model's own
            chat template; None where the data holds no such questions.
    """

    data: str
    bases: tuple[Path, ...]
    samples: int | None
    length: int
    seed: int
    purpose: Purpose
    trust_remote_code: bool = False
    field: str = "data"
    prompt: str | None = None

    @property
    def key(self) -> str:
        """Recipe key that a message about this data names."""
        return f"{self.purpose}.{self.field}"


def find_data(request: DataRequest) -> Path:
    """Return the path of the data.

    Raises:
        DataError: no base folder has it.
    """
    if request.data.startswith("demo:"):
        return _demo_file(request)
    given = Path(request.data).expanduser()
    tried = [given] if given.is_absolute() else [base / given for base in request.bases]
    for path in tried:
        if path.exists():
            return path
    raise DataError(
        f"{request.key}: {request.data}: no such file or folder",
        hint="Looked in: " + ", ".join(str(path.parent) for path in tried),
    )


def is_there(request: DataRequest) -> bool:
    """Tell whether a base folder has the data."""
    try:
        find_data(request)
    except DataError:
        return False
    return True


def _demo_file(request: DataRequest) -> Path:
    from compressor import demo

    files = {"demo:train": demo.TRAIN_TEXT, "demo:valid": demo.VALID_TEXT}
    if request.data not in files:
        raise DataError(f"{request.key}: {request.data}: allowed are {', '.join(files)}")
    return Path(files[request.data])


def load_data(request: DataRequest, task: str, folder: Path) -> EvalData:
    """Read data for a task with the tokenizer or image processor of the model in `folder`.

    Raises:
        DataError: the data is missing, of the wrong kind, unreadable or too short.
    """
    path = find_data(request)
    config = model_config(folder)
    if family_named(config.model_type).inputs == "pixels":
        return _images(path, request, folder, config, head_of(config, task))
    if path.is_dir():
        raise DataError(f"{request.key}: {path.name} is a folder; {task} needs a file (.txt, .jsonl, .csv, .tsv)")
    tokenizer = load_tokenizer(folder, request.key, trust_remote_code=request.trust_remote_code)
    data: EvalData
    if task == "text-generation":
        data = _windows(path, request, tokenizer)
    else:
        head = head_of(config, task)
        encoder = read_sentence_encoder(folder) if head is None else SentenceEncoder()
        data = _sentences(path, request, tokeniser(tokenizer, config, request.length, encoder), head)
    _check_ids(data, int(config.vocab_size), request.key, folder)
    return data


def model_config(folder: Path) -> Any:
    """Return the model's config, whose classes and vocabulary the data must fit."""
    from compressor.model.image_size import resize_images
    from compressor.model.source import read_config

    config = read_config(folder)
    resize_images(folder, config, family_named(config.model_type))
    return config


def _check_ids(data: EvalData, size: int, key: str, folder: Path) -> None:
    """Raise DataError where the data hold a token that the model's vocabulary of `size` does not have."""
    greatest = max(int(batch["input_ids"].max(initial=0)) for batch in model_batches(data))
    if greatest >= size:
        raise DataError(
            f"{key}: the tokenizer of {folder.name} gives token {greatest}; vocab_size in its config.json is {size},"
            f" so the model knows tokens 0 to {size - 1}",
            hint="Put the tokenizer files that belong to the model into the folder of model.id.",
        )


def _windows(path: Path, request: DataRequest, tokenizer: Any) -> TextData:
    windows = Windows(Corpus(path, request.key), tokenizer, length=request.length, samples=request.samples)
    random_places = request.purpose == "calibration" and request.samples is not None
    return TextData(windows.drawn(request.seed) if random_places else windows.first(), str(path))


def choose(count: int, request: DataRequest, path: Path, what: str) -> list[int]:
    """Choose sample indices: all, the first n (evaluation) or n at random (calibration).

    Raises:
        DataError: there are not as many.
    """
    wanted = count if request.samples is None else request.samples
    if not count or wanted > count:
        raise DataError(
            f"{request.key}: {path.name} has {count} {what}, {wanted or 1} are asked for",
            hint=f"Give more data or set {request.purpose}.samples to at most {count}." if count else "Give more data.",
        )
    if request.purpose == "evaluation":
        return list(range(wanted))
    return sorted(random.Random(request.seed).sample(range(count), wanted))


def _sentences(path: Path, request: DataRequest, batch: Callable[..., Batches], head: Head | None) -> EvalData:
    """Read sentences, which `batch` tokenises, for a classifier or an encoder (no head).

    A classifier reads both texts of a pair at once.
    """
    if path.suffix in {".csv", ".tsv"}:
        table = read_sentences(path, request.key, head)
    else:
        table = Sentences([(line,) for line in read_lines(path, request.key)], [])
    table = _chosen(table, choose(len(table.texts), request, path, "sentences"))
    sides = [list(side) for side in zip(*table.texts, strict=True)]
    if head is not None:
        labelled = _labelled(batch(*sides), table, head, request, path)
        return labelled or SentenceData(batch(*sides), len(table.texts), str(path))
    if len(sides) == 2:
        first, second = sides
        numbers = np.asarray(table.numbers, dtype=np.float64)
        _check_differs(numbers, request, path)
        return PairData(first, second, numbers, batch(first), batch(second), str(path))
    return SentenceData(batch(sides[0]), len(table.texts), str(path))


def _chosen(table: Sentences, rows: Sequence[int]) -> Sentences:
    numbers = [table.numbers[i] for i in rows] if table.numbers else []
    sets = [table.sets[i] for i in rows] if table.sets else []
    return Sentences([table.texts[i] for i in rows], numbers, sets)


def _labelled(
    batches: Batches, table: Sentences, head: Head, request: DataRequest, path: Path
) -> LabelData | ValueData | SetData | None:
    """Return samples with what their labels mean for a head; None where the table has no labels.

    Raises:
        DataError: nothing can be measured on these labels.
    """
    if table.sets:
        holds = np.zeros((len(table.sets), len(head.names)), dtype=np.bool_)
        for row, labels in zip(holds, table.sets, strict=True):
            row[list(labels)] = True
        if request.purpose == "evaluation" and not holds.any():
            raise DataError(f"{request.key}: {path.name}: no sample has any label, so that F1 is not defined")
        return SetData(batches, holds, str(path))
    if not table.numbers:
        return None
    numbers = np.asarray(table.numbers, dtype=np.float64)
    if head.kind == "labels":
        return LabelData(batches, numbers.astype(np.int64), str(path))
    _check_differs(numbers, request, path)
    return ValueData(batches, numbers, str(path))


def _check_differs(numbers: NDArray[np.float64], request: DataRequest, path: Path) -> None:
    """Raise DataError where scores to be evaluated on are all equal: they have no order to compare with."""
    if request.purpose == "evaluation" and (numbers == numbers[0]).all():
        raise DataError(
            f"{request.key}: {path.name}: the scores of all {len(numbers)} samples are {numbers[0]:g}; a correlation"
            " needs at least two that differ"
        )


def tokeniser(tokenizer: Any, config: Any, length: int, encoder: SentenceEncoder) -> Callable[..., Batches]:
    """Return what makes batches of texts, or of two lists whose texts are read together, pair by pair.

    Texts are tokenised as `encoder` states, and cut off at `length` tokens or earlier; where the model with that
    `config` reads padding like any token, they are padded to all of its positions.
    """
    length = min(length, encoder.max_length or length)
    longest = _CHARACTERS_PER_TOKEN * length  # the tokenizer lists all that it cuts off, which takes minutes for a book
    full = int(config.max_position_embeddings) if family_named(config.model_type).full_length else 0
    names = {"input_ids", "attention_mask", *(["token_type_ids"] if getattr(config, "type_vocab_size", 0) else [])}
    if encoder.lower_case:
        _lower_case(tokenizer)

    def batches_of(*sides: Sequence[str]) -> Batches:
        count = len(sides[0])

        def make() -> Iterable[Inputs]:
            for start in range(0, count, SENTENCE_BATCH):
                parts = [
                    [encoder.prompt + text[:longest] for text in side[start : start + SENTENCE_BATCH]] for side in sides
                ]
                with library_calls("the tokenizer"):
                    encoded = tokenizer(*parts, padding=True, truncation=True, max_length=length, return_tensors="np")
                found: Inputs = {
                    name: np.asarray(array, dtype=np.int64) for name, array in encoded.items() if name in names
                }
                yield _filled(found, tokenizer, full) if full else found

        return Batches(make, -(-count // SENTENCE_BATCH))

    return batches_of


def _filled(inputs: Inputs, tokenizer: Any, length: int) -> Inputs:
    """Return the ids of a padded batch, padded on to `length`, and no mask."""
    ids = inputs["input_ids"]
    return {"input_ids": np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=tokenizer.pad_token_id)}


def _lower_case(tokenizer: Any) -> None:
    """Make a tokenizer lower-case text before all else."""
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    own = backend.normalizer
    backend.normalizer = Sequence([Lowercase(), own] if own is not None else [Lowercase()])


def image_table(path: Path, key: str, head: Head | None) -> tuple[Path, Sentences]:
    """Return the folder of images and their names with the labels that a head takes.

    An encoder, which has no head, takes a folder without labels.csv too: all images in it, by name.

    Raises:
        DataError: there are none, or the table cannot be read.
    """
    labels = path / LABELS if path.is_dir() else path
    if head is None and path.is_dir() and not labels.is_file():
        names = sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not names:
            raise DataError(f"{key}: {path.name} holds no images; allowed: {', '.join(SUFFIXES)}")
        return path, Sentences([(name,) for name in names], [])
    if not labels.is_file():
        raise DataError(f"{key}: {path.name}: images are a folder with {LABELS} (file,label)")
    return labels.parent, read_labels(labels, key, head)


def _images(path: Path, request: DataRequest, folder: Path, config: Any, head: Head | None) -> EvalData:
    where, table = image_table(path, request.key, head)
    table, batches = image_batches(path, where, table, request, folder, config)
    if head is None:
        return ImageData(batches, len(table.texts), str(path))
    labelled = _labelled(batches, table, head, request, path)
    assert labelled is not None, "the table of an image folder has labels"
    return labelled


def image_batches(
    path: Path, where: Path, table: Sentences, request: DataRequest, folder: Path, config: Any
) -> tuple[Sentences, Batches]:
    """Return the rows of a table of images that are asked for, and these images as the model takes them.

    Args:
        path: of the data.
        where: folder of the images.
        table: their names.
        request: what is asked for.
        folder: of the model.
        config: its transformers config.
    """
    table = _chosen(table, choose(len(table.texts), request, path, "images"))
    root = Path(os.path.realpath(where))
    files = [Path(os.path.realpath(root / name)) for (name,) in table.texts]
    for file, (name,) in zip(files, table.texts, strict=True):
        if root not in file.parents or not os.path.isfile(file):
            raise DataError(f"{request.key}: {LABELS} names {name:.80}, which is not an image in its folder")
    reader = open_images(folder, config, trust_remote_code=request.trust_remote_code)
    check_images(files, request.key)

    def make() -> Iterable[Inputs]:
        for start in range(0, len(files), IMAGE_BATCH):
            yield {"pixel_values": pixels(files[start : start + IMAGE_BATCH], reader, request.key)}

    return table, Batches(make, -(-len(files) // IMAGE_BATCH))


def text_batch(length: int) -> int:
    """Return how many windows of `length` tokens a calibration batch has."""
    return max(1, TEXT_BATCH_TOKENS // length)


def model_batches(data: EvalData, size: int | None = None) -> Batches:
    """Return the model inputs of any data, as batches that can be read again and again.

    Args:
        data: what was read.
        size: windows of a batch of text; None takes as many as calibration does.
    """
    if isinstance(data, TextData):
        windows = data.windows
        size = size or text_batch(windows.shape[1])

        def make() -> Iterable[Inputs]:
            for start in range(0, len(windows), size):
                yield {"input_ids": windows[start : start + size]}

        return Batches(make, -(-len(windows) // size))
    if isinstance(data, AnswerData):
        questions = data.questions
        tokens = [np.asarray([[*asked.prompt, *asked.answer]], dtype=np.int64) for asked in questions]
        return Batches(lambda: ({"input_ids": ids} for ids in tokens), len(tokens))
    if isinstance(data, PairData):
        pairs = data

        def both() -> Iterable[Inputs]:
            yield from pairs.first_batches
            yield from pairs.second_batches

        return Batches(both, len(pairs.first_batches) + len(pairs.second_batches))
    return data.batches
