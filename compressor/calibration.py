"""From files to model inputs: text windows, sentence pairs, labelled sentences and images.

Calibration data and evaluation data are read by the same functions. Too little data is an error, never a silent repeat.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.data import Batches, EvalData, Inputs, LabelData, PairData, SentenceData, TextData
from compressor.errors import DataError

TEXT_BATCH = 8
SENTENCE_BATCH = 32
IMAGE_BATCH = 16
DOCUMENT_END = "<|endoftext|>"
_CHARACTERS_PER_TOKEN = 8

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
    """

    data: str
    bases: tuple[Path, ...]
    samples: int | None
    length: int
    seed: int
    purpose: Purpose

    @property
    def key(self) -> str:
        """Recipe key that a message about this data names."""
        return f"{self.purpose}.data"


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
    if task == "image-classification":
        return _images(path, request, folder)
    if path.is_dir():
        raise DataError(f"{request.key}: {path.name} is a folder; {task} needs a file (.txt, .jsonl, .csv, .tsv)")
    tokenizer = load_tokenizer(folder, request.key)
    if task == "text-generation":
        return _windows(path, request, tokenizer)
    return _sentences(path, request, tokenizer, task)


def load_tokenizer(folder: Path, where: str = "model.id") -> Any:
    """Load the tokenizer of a model folder.

    Raises:
        DataError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")):
        raise DataError(f"{where}: {folder.name} has no tokenizer", hint="Copy tokenizer.json beside config.json.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise DataError(f"{where}: the tokenizer of {folder.name} cannot be read: {error}") from error


def _read_text(path: Path, key: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{key}: {path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{key}: {path.name} cannot be read: {error.strerror}") from error
    if path.suffix == ".jsonl":
        return DOCUMENT_END.join(_jsonl(text, path, key))
    return text


def _jsonl(text: str, path: Path, key: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            found.append(item if isinstance(item, str) else str(item["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{key}: {path.name} line {number}: not JSON with a "text" field') from error
    return found


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenise text; documents apart, each with the tokenizer's own opening token, where the text marks their ends."""
    if DOCUMENT_END not in text:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    documents = [part.strip() for part in text.split(DOCUMENT_END)]
    encoded = tokenizer([part for part in documents if part], verbose=False)["input_ids"]
    return [token for ids in encoded for token in ids]


def _windows(path: Path, request: DataRequest, tokenizer: Any) -> TextData:
    text = _read_text(path, request.key)
    if request.purpose == "calibration" and request.samples is not None:
        windows = _random_windows(text, request, tokenizer)
    else:
        ids = _encode(tokenizer, text)
        count = len(ids) // request.length
        count = min(count, request.samples) if request.samples is not None else count
        windows = [ids[i * request.length : (i + 1) * request.length] for i in range(count)]
        if not count or (request.samples is not None and count < request.samples):
            _short(path, request, f"{len(ids)} tokens", len(ids) // request.length)
    return TextData(np.asarray(windows, dtype=np.int64), str(path))


def _random_windows(text: str, request: DataRequest, tokenizer: Any) -> list[list[int]]:
    """Draw windows at random offsets; a long text is tokenised only around them."""
    samples, length = request.samples or 0, request.length
    rng = random.Random(request.seed)
    span = length * _CHARACTERS_PER_TOKEN
    windows: list[list[int]] = []
    if len(text) >= 4 * samples * span and DOCUMENT_END not in text:
        for _ in range(2 * samples):
            start = text.find(" ", rng.randrange(len(text) - 2 * span))
            ids = tokenizer(text[start : start + span], add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= length:
                windows.append(list(ids[:length]))
            if len(windows) == samples:
                return windows
    ids = _encode(tokenizer, text)
    if len(ids) < samples * length:
        _short(Path(request.data), request, f"{len(ids)} tokens", len(ids) // length)
    starts = [rng.randrange(len(ids) - length + 1) for _ in range(samples)]
    return [ids[start : start + length] for start in starts]


def _short(path: Path, request: DataRequest, given: str, possible: int) -> None:
    wanted = f"{request.samples} samples of " if request.samples is not None else "at least one window of "
    raise DataError(
        f"{request.key}: {path.name} has {given}, too little for {wanted}{request.length} tokens",
        hint=f"Give more text, or set {request.purpose}.samples to at most {possible}, or a smaller length.",
    )


def _rows(path: Path, key: str) -> list[list[str]]:
    """Read .csv / .tsv rows without their header, .txt lines or .jsonl texts as one-column rows."""
    text = _read_text(path, key) if path.suffix != ".jsonl" else path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [[item] for item in _jsonl(text, path, key)]
    if path.suffix not in {".csv", ".tsv"}:
        return [[line.strip()] for line in text.splitlines() if line.strip()]
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    rows = [row for row in csv.reader(text.splitlines(), **dialect) if row]  # type: ignore[arg-type]
    if rows and len(rows[0]) > 1 and not any(_number(cell) is not None for cell in rows[0]):
        rows = rows[1:]
    return rows


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _choose(count: int, request: DataRequest, path: Path, what: str) -> list[int]:
    """Choose sample indices: all, the first n (evaluation) or n at random (calibration)."""
    wanted = count if request.samples is None else request.samples
    if not count or wanted > count:
        raise DataError(
            f"{request.key}: {path.name} has {count} {what}, {wanted or 1} are asked for",
            hint=f"Give more data or set {request.purpose}.samples to at most {count}.",
        )
    if request.purpose == "evaluation":
        return list(range(wanted))
    return sorted(random.Random(request.seed).sample(range(count), wanted))


def _sentences(path: Path, request: DataRequest, tokenizer: Any, task: str) -> EvalData:
    rows = _rows(path, request.key)
    rows = [rows[i] for i in _choose(len(rows), request, path, "sentences")]
    batch = _tokeniser(tokenizer, request.length)
    width = len(rows[0])
    if any(len(row) != width for row in rows):
        raise DataError(f"{request.key}: {path.name}: rows do not all have {width} columns")
    if width == 1:
        return SentenceData(batch([row[0] for row in rows]), len(rows), str(path))
    numbers = [_number(row[-1]) for row in rows]
    if any(number is None for number in numbers):
        raise DataError(f"{request.key}: {path.name}: the last column must be a number (score or label)")
    values = np.asarray(numbers, dtype=np.float64)
    if width == 3:
        first, second = [row[0] for row in rows], [row[1] for row in rows]
        return PairData(first, second, values, batch(first), batch(second), str(path))
    texts = [row[0] for row in rows]
    if task == "text-classification":
        return LabelData(batch(texts), values.astype(np.int64), str(path))
    return SentenceData(batch(texts), len(texts), str(path))


def _tokeniser(tokenizer: Any, length: int) -> Callable[[Sequence[str]], Batches]:
    def batches_of(texts: Sequence[str]) -> Batches:
        def make() -> Iterable[Inputs]:
            for start in range(0, len(texts), SENTENCE_BATCH):
                part = list(texts[start : start + SENTENCE_BATCH])
                encoded = tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="np")
                yield {name: np.asarray(array, dtype=np.int64) for name, array in encoded.items()}

        return Batches(make, -(-len(texts) // SENTENCE_BATCH))

    return batches_of


def _images(path: Path, request: DataRequest, folder: Path) -> LabelData:
    labels = path / "labels.csv" if path.is_dir() else path
    if not labels.is_file():
        raise DataError(f"{request.key}: {path.name}: images are a folder with labels.csv (file,label)")
    rows = _rows(labels, request.key)
    if any(len(row) != 2 or not row[1].strip().isdigit() for row in rows):
        raise DataError(f"{request.key}: {labels.name}: every row must be file,label with a class index")
    rows = [rows[i] for i in _choose(len(rows), request, path, "images")]
    root = labels.parent.resolve()
    files = [(root / row[0]).resolve() for row in rows]
    for file in files:
        if root not in file.parents or not file.is_file():
            raise DataError(f"{request.key}: {labels.name} names {file.name}, which is not an image in its folder")
    processor = _image_processor(folder)

    def make() -> Iterable[Inputs]:
        for start in range(0, len(files), IMAGE_BATCH):
            yield {"pixel_values": _pixels(files[start : start + IMAGE_BATCH], processor, request.key)}

    batches = Batches(make, -(-len(files) // IMAGE_BATCH))
    return LabelData(batches, np.asarray([int(row[1]) for row in rows], dtype=np.int64), str(path))


def _image_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        raise DataError(f"model.id: {folder.name} has no preprocessor_config.json, so images cannot be prepared")
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise DataError(f"model.id: the image processor of {folder.name} cannot be read: {error}") from error


def _pixels(files: Sequence[Path], processor: Any, key: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    from PIL import Image, UnidentifiedImageError

    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{key}: {file.name} is not a readable image: {error}") from error
    return np.asarray(processor(images=images, return_tensors="np")["pixel_values"], dtype=np.float32)


def model_batches(data: EvalData, size: int = TEXT_BATCH) -> Batches:
    """Return the model inputs of any data, as batches that can be read again and again."""
    if isinstance(data, TextData):
        windows = data.windows

        def make() -> Iterable[Inputs]:
            for start in range(0, len(windows), size):
                yield {"input_ids": windows[start : start + size]}

        return Batches(make, -(-len(windows) // size))
    if isinstance(data, PairData):
        pairs = data

        def both() -> Iterable[Inputs]:
            yield from pairs.first_batches
            yield from pairs.second_batches

        return Batches(both, len(pairs.first_batches) + len(pairs.second_batches))
    return data.batches
