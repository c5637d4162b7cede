"""Images with named labels, and the prompts that stand for the labels: what a model of two towers is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.data.kinds import Batches, LabelData
from compressor.data.preprocessors import load_tokenizer
from compressor.data.reading import LABELS, DataRequest, find_data, image_batches, model_config, tokeniser
from compressor.data.tables import read_named_labels, read_prompts
from compressor.errors import DataError
from compressor.storage.sentence import SentenceEncoder


@dataclass(frozen=True)
class Prompts:
    """The texts that stand for labels.

    Attributes:
        labels: their names, in the order of the rows.
        owners: place in `labels` of each text [N].
        batches: the texts, tokenised.
    """

    labels: tuple[str, ...]
    owners: NDArray[np.int64]
    batches: Batches


def load_prompts(request: DataRequest, folder: Path) -> Prompts:
    """Read the table of labels and prompts with the tokenizer of the text encoder in `folder`.

    Raises:
        DataError: it is missing, or holds no prompts for two labels.
    """
    path = find_data(request)
    if path.is_dir():
        raise DataError(f"{request.key}: {path.name} is a folder; prompts are a table (.csv, .tsv)")
    rows = read_prompts(path, request.key)
    labels = tuple(dict.fromkeys(name for name, _ in rows))
    owners = np.asarray([labels.index(name) for name, _ in rows], dtype=np.int64)
    config = model_config(folder)
    tokenizer = load_tokenizer(folder, request.key, trust_remote_code=request.trust_remote_code)
    batches = tokeniser(tokenizer, config, request.length, SentenceEncoder())([text for _, text in rows])
    return Prompts(labels, owners, batches)


def load_named(request: DataRequest, folder: Path, labels: Sequence[str]) -> LabelData:
    """Read an image folder whose labels.csv names labels, for the image encoder in `folder`.

    Raises:
        DataError: it is missing, cannot be used, or has a label that is not among `labels`.
    """
    path = find_data(request)
    file = path / LABELS if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{request.key}: {path.name}: images are a folder with {LABELS} (file,label)")
    table = read_named_labels(file, request.key, labels)
    table, batches = image_batches(path, file.parent, table, request, folder, model_config(folder))
    return LabelData(batches, np.asarray(table.numbers, dtype=np.int64), str(path))
