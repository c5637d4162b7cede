"""Text on disk: plain files and JSONL documents, in UTF-8 with or without a byte order mark.

Only a line feed ends a line: JSON allows other separators, such as U+2028, inside a string.
"""

from __future__ import annotations

import json
from io import TextIOWrapper
from pathlib import Path

from compressor.errors import DataError
from compressor.storage.regular import open_regular

DOCUMENT_END = "<|endoftext|>"
"""Stands between the documents of one text."""
_MOST_BYTES = 64 << 20


def read_text(path: Path, key: str) -> str:
    """Return the contents of a text file; `key` is the recipe key that a message names.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        with open_text(path, key) as stream:
            if path.stat().st_size > _MOST_BYTES:
                raise DataError(
                    f"{key}: {path.name} is larger than {_MOST_BYTES >> 20} MiB, which is read whole",
                    hint="Take a part of it.",
                )
            return stream.read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{key}: {path.name} is not UTF-8 text: {error.reason} at byte {error.start}",
            hint="Convert the file to UTF-8.",
        ) from error


def open_text(path: Path, key: str) -> TextIOWrapper:
    """Open a text file.

    Raises:
        DataError: it is no regular file, or cannot be read.
    """
    try:
        return TextIOWrapper(open_regular(path), encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{key}: {path.name} cannot be read: {error.strerror or error}") from error


def read_documents(path: Path, key: str) -> str:
    """Return a text, or the documents of a .jsonl file with `DOCUMENT_END` between them.

    Raises:
        DataError: the file cannot be read, or a line of it is not a document.
    """
    text = read_text(path, key)
    return DOCUMENT_END.join(_jsonl(text, path, key)) if path.suffix == ".jsonl" else text


def read_lines(path: Path, key: str) -> list[str]:
    """Return the lines of a text that are not blank, or the documents of a .jsonl file.

    Raises:
        DataError: the file cannot be read, or a line of it is not a document.
    """
    text = read_text(path, key)
    if path.suffix == ".jsonl":
        return _jsonl(text, path, key)
    return [line.strip() for line in text.split("\n") if line.strip()]


def _jsonl(text: str, path: Path, key: str) -> list[str]:
    lines = enumerate(text.split("\n"), 1)
    return [parse_document(line, path, number, key) for number, line in lines if line.strip()]


def parse_document(line: str, path: Path, number: int | None, key: str) -> str:
    """Return the document that a line of a .jsonl file holds.

    Args:
        line: the line.
        path: its file.
        number: of the line, from 1; None where that is not known.
        key: the recipe key that a message names.

    Raises:
        DataError: it is not a document.
    """
    where = f"{key}: {path.name}" + (f" line {number}" if number is not None else "")
    try:
        item = json.loads(line)
        document = item if isinstance(item, str) else item["text"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f'{where}: not JSON with a "text" field', hint='Each line is {"text": "..."}.') from error
    if not isinstance(document, str) or not _is_unicode(document):
        raise DataError(f'{where}: "text" is {json.dumps(document)[:60]}; allowed: a string of Unicode characters')
    return document


def _is_unicode(text: str) -> bool:
    """Tell whether a text has no half of a surrogate pair, which JSON can escape and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
