"""JSON that somebody else wrote: whatever it holds, reading it gives a value or a `ModelError` that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.errors import ModelError, summary
from compressor.storage.regular import open_regular

_MAX_BYTES = 256 << 20
_MAX_DEPTH = 64
"""Levels; what reads a value after us (copies, comparisons, templates) recurses, and files of models need about ten."""


def read_json(path: Path, *, name: str | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        name: what messages call it; its own name if None.

    Raises:
        ModelError: the file is missing, is no regular file, or holds something else.
    """
    return as_object(read_json_value(path, name=name), name or path.name)


def read_json_value(path: Path, *, name: str | None = None) -> Any:
    """Read JSON of any type; see `read_json`."""
    name = name or path.name
    try:
        with open_regular(path) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ModelError(f"{name} is missing from {path.parent.name}") from None
    except (OSError, ValueError) as error:  # a path may hold a NUL
        raise ModelError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MAX_BYTES:
        raise ModelError(f"{name} cannot be read: it is larger than {_MAX_BYTES >> 20} MiB")
    return parse_json(data, name)


def parse_json(
    data: bytes | str, name: str, *, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> Any:
    """Return the value of a JSON text.

    Args:
        data: the text.
        name: what messages call it.
        pairs: makes an object of its keys and values, and may refuse them by a ValueError; None for a plain dict.

    Raises:
        ModelError: it is no JSON, is nested too deep, or holds half of a surrogate pair.
    """
    try:
        value = json.loads(data.decode("utf-8") if isinstance(data, bytes) else data, object_pairs_hook=pairs)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, integers of very many digits
        raise ModelError(f"{name} cannot be read: {summary(error)}", hint="Download or copy it again.") from error
    _check(value, name)
    return value


def as_object(value: Any, name: str) -> dict[str, Any]:
    """Return a JSON value that must be an object.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds a {type(value).__name__}, not a JSON object")
    return value


def _check(value: Any, name: str) -> None:
    """Raise ModelError where a value is nested too deep, or a text in it could not be written again."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [part for item in level for part in _parts(item)]
        if not level:
            return
        for text in level:
            if isinstance(text, str) and not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                raise ModelError(f"{name} cannot be read: it holds half of a surrogate pair, which is no character")
    raise _too_deep(name)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _too_deep(name: str) -> ModelError:
    return ModelError(
        f"{name} cannot be read: it is nested deeper than {_MAX_DEPTH} levels", hint="Download or copy it again."
    )
