"""A text on disk that is read only as far as it is needed: whole, from the start, or at places drawn at random.

Tokenizers take about 150 bytes per character that they are given at once, so they are given a text in pieces. A piece
is large: the texts that models are usually evaluated on are one.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from compressor.data.texts import DOCUMENT_END, open_text, parse_document, read_documents
from compressor.errors import DataError

PIECE = 2_000_000
"""Characters that a tokenizer is given at once."""
LARGE = 64 << 20
"""Bytes of a file that is no more read whole."""


@dataclass(frozen=True)
class Corpus:
    """A text or the documents of a .jsonl file.

    Attributes:
        path: the file.
        key: recipe key that a message names.
    """

    path: Path
    key: str

    @property
    def large(self) -> bool:
        """Whether the file is too large to be read whole."""
        return self.path.stat().st_size > LARGE

    def whole(self) -> str:
        """Return the text, or the documents with `DOCUMENT_END` between them.

        Raises:
            DataError: the file cannot be read, or a line of it is not a document.
        """
        return read_documents(self.path, self.key)

    def has_documents(self) -> bool:
        """Tell whether the text marks the ends of documents.

        Raises:
            DataError: the file cannot be read.
        """
        if self.path.suffix == ".jsonl":
            with self._decoded() as stream:
                lines = (line for line in stream if line.strip())
                return DOCUMENT_END in next(lines, "") or next(lines, None) is not None
        if not self.path.stat().st_size:
            return False
        with (
            open_text(self.path, self.key) as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(DOCUMENT_END.encode()) >= 0

    def pieces(self, size: int = PIECE) -> Iterator[str]:
        """Yield the text in pieces of at most `size` characters that end between documents, else between words.

        Raises:
            DataError: the file cannot be read, or a line of it is not a document.
        """
        return cut(self._parts(size), size)

    def _parts(self, size: int) -> Iterator[str]:
        with self._decoded() as stream:
            if self.path.suffix != ".jsonl":
                while part := stream.read(size):
                    yield part
                return
            between = ""
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield between + parse_document(line, self.path, number, self.key)
                    between = DOCUMENT_END

    @contextmanager
    def _decoded(self) -> Iterator[TextIOWrapper]:
        try:
            with open_text(self.path, self.key) as stream:
                yield stream
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.key}: {self.path.name} is not UTF-8 text: {error.reason}", hint="Convert the file to UTF-8."
            ) from error

    def block(self, rng: random.Random, characters: int) -> str:
        """Return the text at a place drawn at random: `characters` or more, if the file has so many there.

        A block of a .jsonl file is the documents of the lines that lie in it.

        Raises:
            DataError: the file cannot be read, or a line there is not a document.
        """
        wanted = 4 * characters  # bytes of a character in UTF-8, at most
        with self.path.open("rb") as stream:
            start = rng.randrange(max(1, self.path.stat().st_size - wanted))
            stream.seek(start)
            text = stream.read(wanted).decode("utf-8", errors="ignore").replace("\r\n", "\n")
        if self.path.suffix != ".jsonl":
            return text
        lines = text.split("\n")[1:-1]
        return DOCUMENT_END.join(parse_document(line, self.path, None, self.key) for line in lines if line.strip())


def cut(parts: str | Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Yield a text, which may come in parts, in pieces of at most `size` characters; see `Corpus.pieces`."""
    held = ""
    for part in [parts] if isinstance(parts, str) else parts:
        held += part
        while len(held) > size:
            end = _end_of_piece(held, size)
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _end_of_piece(text: str, size: int) -> int:
    """Return where a piece of at most `size` characters ends: after a document, before a space, or anywhere."""
    if (end := text.rfind(DOCUMENT_END, 0, size)) >= 0:
        return end + len(DOCUMENT_END)
    end = max(text.rfind(space, size // 2, size) for space in "\n ")
    return end if end > 0 else size
