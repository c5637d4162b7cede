"""The tokens of a model folder's tokenizer files, without the library that reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any


def greatest_token(folder: Path) -> tuple[int, str] | None:
    """Return the highest id that the tokenizer files of a folder state, and its token; None where none can be read.

    Files that cannot be read are left out here: what is wrong with them is said where the tokenizer is loaded.
    """
    return max(chain(_fast(folder), _slow(folder), _added(folder)), default=None)


def _fast(folder: Path) -> Iterator[tuple[int, str]]:
    found = _json(folder / "tokenizer.json")
    model = found.get("model") if isinstance(found, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    yield from _pairs(vocabulary)
    if isinstance(vocabulary, list) and vocabulary:  # of a unigram model: [token, score]
        last = vocabulary[-1]
        yield len(vocabulary) - 1, str(last[0]) if isinstance(last, list) and last else ""
    added = found.get("added_tokens") if isinstance(found, dict) else None
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and type(token.get("id")) is int:
            yield token["id"], str(token.get("content"))


def _slow(folder: Path) -> Iterator[tuple[int, str]]:
    if (folder / "tokenizer.json").is_file():
        return
    yield from _pairs(_json(folder / "vocab.json"))
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    if lines:
        yield len(lines) - 1, lines[-1]


def _added(folder: Path) -> Iterator[tuple[int, str]]:
    yield from _pairs(_json(folder / "added_tokens.json"))
    config = _json(folder / "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if number.isdecimal() and len(number) < 10:
            yield int(number), str(token.get("content") if isinstance(token, dict) else token)


def _pairs(found: Any) -> Iterator[tuple[int, str]]:
    """Yield the tokens of an object that maps token to id."""
    for token, number in found.items() if isinstance(found, dict) else ():
        if type(number) is int:
            yield number, token


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
