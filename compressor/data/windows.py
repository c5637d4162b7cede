"""From a text to windows of tokens: of calibration at random places, of evaluation from the start without overlap.

No more of a text is tokenised than is needed, and never more than a piece of it at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.corpus import PIECE, Corpus, cut
from compressor.data.preprocessors import library_calls
from compressor.data.texts import DOCUMENT_END
from compressor.errors import DataError

Ids = NDArray[np.int64]

_CHARACTERS_PER_TOKEN = 8
_SPARSE = (_CHARACTERS_PER_TOKEN, 4 * _CHARACTERS_PER_TOKEN, 16 * _CHARACTERS_PER_TOKEN)
"""How much text is taken for a window: first what is enough for nearly all texts, then for stranger ones."""
_DRAWN_CHARACTERS = 8 * PIECE
"""Characters from which on a text is in no case tokenised whole to draw windows from it."""


class Windows:
    """Makes windows of one text."""

    def __init__(self, corpus: Corpus, tokenizer: Any, *, length: int, samples: int | None) -> None:
        """Take the text, the model's tokenizer, the tokens of a window, and how many windows; None for all."""
        self._corpus, self._tokenizer = corpus, tokenizer
        self._length, self._samples = length, samples
        self._what = f"{corpus.key}: {corpus.path.name} and the tokenizer"

    def first(self) -> Ids:
        """Return the windows that the text begins with [samples, length].

        Raises:
            DataError: there are fewer.
        """
        wanted = None if self._samples is None else self._samples * self._length
        # Four times what a text of four characters per token needs: the end of a piece is then far from what is taken.
        size = PIECE if wanted is None else min(PIECE, max(1 << 16, 2 * _CHARACTERS_PER_TOKEN * wanted))
        documents = self._corpus.has_documents()
        parts: list[Ids] = []
        count = 0
        for piece in self._corpus.pieces(size):
            parts.append(self._encode(piece, documents=documents))
            count += len(parts[-1])
            if wanted is not None and count >= wanted:
                break
        windows = count // self._length
        if not windows or (self._samples is not None and windows < self._samples):
            raise self._short(f"{count} tokens", windows)
        windows = min(windows, self._samples or windows)
        return np.concatenate(parts)[: windows * self._length].reshape(windows, self._length)

    def drawn(self, seed: int) -> Ids:
        """Return windows at random places [samples, length]; a long text is tokenised only around them.

        Raises:
            DataError: there is too little text.
        """
        rng = random.Random(seed)
        documents = self._corpus.has_documents()
        if self._corpus.large:
            found = self._at(lambda span: _aligned(self._corpus.block(rng, 2 * span), 0, span, documents), documents)
            return self._all_or_none(found)
        text = self._corpus.whole()
        enough = len(text) >= 4 * (self._samples or 0) * self._length * _CHARACTERS_PER_TOKEN
        many = len(text) >= _DRAWN_CHARACTERS
        if many or (enough and not documents):
            found = self._at(lambda span: _aligned(text, _place(rng, len(text), span), span, documents), documents)
            if many or found is not None:
                return self._all_or_none(found)
        return self._of_all(text, rng, documents)

    def _at(self, take: Callable[[int], str], documents: bool) -> Ids | None:
        """Return windows that begin where the texts that `take` gives for a length do; None if too few are found."""
        samples, length = self._samples or 0, self._length
        windows: list[Ids] = []
        for characters in _SPARSE:
            for _ in range(2 * samples):
                ids = self._encode(take(length * characters), documents=documents)
                if len(ids) >= length:
                    windows.append(ids[:length])
                if len(windows) == samples:
                    return np.stack(windows)
        return None

    def _all_or_none(self, windows: Ids | None) -> Ids:
        if windows is None:
            raise self._short(f"places with fewer than {self._length} tokens almost everywhere", 0)
        return windows

    def _of_all(self, text: str, rng: random.Random, documents: bool) -> Ids:
        """Return windows that begin at random tokens of the whole text."""
        samples, length = self._samples or 0, self._length
        ids = np.concatenate([self._encode(piece, documents=documents) for piece in list(cut(text)) or [""]])
        if len(ids) < max(1, samples) * length:
            raise self._short(f"{len(ids)} tokens", len(ids) // length)
        starts = [rng.randrange(len(ids) - length + 1) for _ in range(samples)]
        return np.stack([ids[start : start + length] for start in starts])

    def _encode(self, text: str, *, documents: bool) -> Ids:
        """Tokenise text; documents apart, each with the tokenizer's own opening token, where the text marks them."""
        options = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}
        with library_calls(self._what):
            if not documents:
                return np.asarray(
                    self._tokenizer(text, add_special_tokens=False, **options)["input_ids"], dtype=np.int64
                )
            parts = [part for document in text.split(DOCUMENT_END) if (part := document.strip())]
            encoded = self._tokenizer(parts, **options)["input_ids"] if parts else []
            return np.asarray([token for ids in encoded for token in ids], dtype=np.int64)

    def _short(self, given: str, possible: int) -> DataError:
        corpus, purpose = self._corpus, self._corpus.key.partition(".")[0]
        wanted = f"{self._samples} samples of " if self._samples is not None else "at least one window of "
        fewer = f"set {purpose}.samples to at most {possible}, or " if possible else ""
        return DataError(
            f"{corpus.key}: {corpus.path.name} has {given}, too little for {wanted}{self._length} tokens",
            hint=f"Give more text, or {fewer}a smaller {purpose}.length.",
        )


def _place(rng: random.Random, size: int, span: int) -> int:
    return rng.randrange(max(1, size - 2 * span))


def _aligned(text: str, place: int, span: int, documents: bool) -> str:
    """Return `span` characters of a text from the next document or space after a place on, if one is near."""
    start = text.find(DOCUMENT_END, place, place + span) if documents else -1
    start = max(place, text.find(" ", place, place + span) if start < 0 else start)
    taken = text[start : start + span]
    begun = taken.rfind("<")  # the last mark may be cut through
    return taken[:begun] if documents and DOCUMENT_END.startswith(taken[begun:]) else taken
