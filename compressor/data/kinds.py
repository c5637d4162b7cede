"""Shapes of evaluation and calibration data: plain frozen dataclasses over numpy, with no torch and no file reading.

`compressor.data.reading` makes these objects from files; `compressor.measure.evaluation` consumes them. Batches are
tokenised or decoded lazily: every iteration over `batches` starts again from the first one, so two runners can read
them in turn. `kind` is the word by which `compressor.architectures.tasks` says which metrics such data allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
Inputs: TypeAlias = dict[str, NDArray[np.generic]]
"""Model inputs by name (`input_ids`, `attention_mask`, `pixel_values`, ...); the first axis is the batch."""


@dataclass(frozen=True)
class Batches:
    """A re-iterable sequence of model inputs whose items are made on demand.

    Attributes:
        make: returns a fresh iterator over the batches, in the same order and with the same contents every time.
        count: number of batches (what `len` returns).
    """

    make: Callable[[], Iterable[Inputs]]
    count: int

    def __iter__(self) -> Iterator[Inputs]:
        """Start again from the first batch."""
        return iter(self.make())

    def __len__(self) -> int:
        """Number of batches."""
        return self.count


@dataclass(frozen=True)
class TextData:
    """Token windows for language models.

    Attributes:
        windows: token ids [N, T], non-overlapping, without padding.
        source: where the text came from, for reports.
    """

    kind: ClassVar[str] = "text"
    windows: Ids
    source: str = ""

    def __len__(self) -> int:
        """Number of windows."""
        return int(self.windows.shape[0])


@dataclass(frozen=True)
class PairData:
    """Sentence pairs with gold similarity scores.

    Attributes:
        first: first sentence of each pair.
        second: second sentence of each pair.
        scores: gold similarity [N], any scale (only ranks count).
        first_batches: `first` tokenised, in order, right-padded within a batch, with `attention_mask`.
        second_batches: `second` tokenised the same way; may be batched differently.
        source: where the pairs came from, for reports.
    """

    kind: ClassVar[str] = "pairs"
    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]
    first_batches: Batches
    second_batches: Batches
    source: str = ""

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first)


@dataclass(frozen=True)
class LabelData:
    """Labelled inputs: images (`pixel_values`) or sentences for a classifier.

    Attributes:
        batches: model inputs, in the order of `labels`.
        labels: class index of each sample [N].
        source: where the samples came from, for reports.
    """

    kind: ClassVar[str] = "labels"
    batches: Batches
    labels: Ids
    source: str = ""

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.labels.shape[0])


@dataclass(frozen=True)
class SentenceData:
    """Unlabelled sentences for encoders: calibration, or embeddings compared with the dense model's.

    Attributes:
        batches: tokenised sentences, right-padded within a batch, with `attention_mask`.
        count: number of sentences.
        source: where the sentences came from, for reports.
    """

    kind: ClassVar[str] = "sentences"
    batches: Batches
    count: int
    source: str = ""

    def __len__(self) -> int:
        """Number of sentences."""
        return self.count


@dataclass(frozen=True)
class ImageData:
    """Images without labels for encoders: calibration, or embeddings compared with the dense model's.

    Attributes:
        batches: prepared images (`pixel_values`).
        count: number of images.
        source: where the images came from, for reports.
    """

    kind: ClassVar[str] = "images"
    batches: Batches
    count: int
    source: str = ""

    def __len__(self) -> int:
        """Number of images."""
        return self.count


@dataclass(frozen=True)
class ValueData:
    """Inputs with real numbers for a model of one output: regression, rewards, the relevance of a pair of texts.

    Attributes:
        batches: model inputs, in the order of `values`.
        values: number that belongs to each sample [N].
        source: where the samples came from, for reports.
    """

    kind: ClassVar[str] = "values"
    batches: Batches
    values: NDArray[np.float64]
    source: str = ""

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.values.shape[0])


@dataclass(frozen=True)
class SetData:
    """Inputs with any number of labels each, for a model that scores every label by itself.

    Attributes:
        batches: model inputs, in the order of `holds`.
        holds: whether a label holds for a sample, bool [N, labels].
        source: where the samples came from, for reports.
    """

    kind: ClassVar[str] = "label sets"
    batches: Batches
    holds: NDArray[np.bool_]
    source: str = ""

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.holds.shape[0])


@dataclass(frozen=True)
class Question:
    """A question about an image, and its right answer.

    Attributes:
        image: place of its image among those of the data.
        kind: what such questions are called, for figures by kind; empty where the data does not say.
        prompt: tokens, of which one stands for the image.
        answer: tokens; the last one ends it.
    """

    image: int
    kind: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class AnswerData:
    """Questions about images with their answers, for a language model that sees images.

    Attributes:
        images: prepared images (`pixel_values`), each once.
        questions: in the order of their images.
        image_token: the token that stands for an image in a prompt.
        source: where the questions came from, for reports.
    """

    kind: ClassVar[str] = "answers"
    images: Batches
    questions: tuple[Question, ...]
    image_token: int
    source: str = ""

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.questions)


EvalData: TypeAlias = TextData | PairData | LabelData | ValueData | SetData | SentenceData | ImageData | AnswerData
