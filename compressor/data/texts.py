"""Text on disk: plain files and JSONL documents, in UTF-8 with or without a byte order mark.

Only a line feed ends a line: JSON allows other separators, such as U+2028, inside a string.
"""

from __future__ import annotations

import json
from pathlib import Path

from compressor.errors import DataError

DOCUMENT_END = "<|endoftext|>"
"""Stands between the documents of one text."""


def read_text(path: Path, key: str) -> str:
    """Return the contents of a text file; `key` is the recipe key that a message names.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{key}: {path.name} is not UTF-8 text: {error.reason} at byte {error.start}",
            hint="Convert the file to UTF-8.",
        ) from error
    except OSError as error:
        raise DataError(f"{key}: {path.name} cannot be read: {error.strerror}") from error


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
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{key}: {path.name} line {number}"
        try:
            item = json.loads(line)
            document = item if isinstance(item, str) else item["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f'{where}: not JSON with a "text" field', hint='Each line is {"text": "..."}.') from error
        if not isinstance(document, str) or not _is_unicode(document):
            raise DataError(f'{where}: "text" is {json.dumps(document)[:60]}; allowed: a string of Unicode characters')
        found.append(document)
    return found


def _is_unicode(text: str) -> bool:
    """Tell whether a text has no half of a surrogate pair, which JSON can escape and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
