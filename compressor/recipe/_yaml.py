"""YAML text to plain values with the line of every key; nothing is executed, expanded or guessed.

A recipe needs mappings, lists and scalars. Aliases (a few lines of which can stand for gigabytes), tags (which name
types to build) and a second document are refused. Plain scalars follow YAML 1.2: `1e-3` is a number, `no` is text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from compressor.errors import Problem

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the top of the document to a value."""

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16

_MAX_DIGITS = 18
LARGEST = 10**_MAX_DIGITS - 1
"""Integers beyond are read as floats."""
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None} | {
    form: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for form in (word, word.capitalize(), word.upper())
}


class Refused(Exception):
    """The text cannot be read any further."""

    def __init__(self, problem: Problem) -> None:
        """Keep what is wrong."""
        super().__init__(str(problem))
        self.problem = problem


@dataclass
class Document:
    """What a YAML text says.

    Attributes:
        value: dict, list, str, int, float, bool or None.
        lines: 1-based line of every key and list item.
        problems: keys given twice and numbers that cannot be used; the rest of `value` is usable.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class _Open:
    """A mapping or list whose end has not been read."""

    value: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None


def read(text: str) -> Document:
    """Read one document.

    Raises:
        Refused: the text is not YAML, or uses what recipes do not need.
    """
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise Refused(Problem("", f"not valid YAML: {what}", mark.line + 1 if mark else None)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Refused(Problem("", f"not valid YAML: control character #x{error.character:02x}", line)) from error
    except (ValueError, OverflowError) as error:  # PyYAML's scanner on escapes such as \UFFFFFFFF
        raise Refused(Problem("", f"not valid YAML: {error}", None)) from error
    return reader.document


def scalar(text: str) -> Any:
    """Return the value of a plain scalar: None, bool, int, float (infinite where it is too large) or str."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text.lstrip("+-")) <= _MAX_DIGITS else float(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def key_name(path: Sequence[str | int]) -> str:
    """Return `passes[0].cfsp.sparsity`; a part that is no plain word is quoted and cut."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            plain = r"[\w.-]{1,60}" if name == "verify" else r"[\w-]{1,60}"  # names of checks have dots in them
            word = part if re.fullmatch(plain, part) else shown(part)
            name += f".{word}" if name else word
    return name


def shown(value: Any) -> str:
    """Return a value for a message: on one line, without control characters, at most 60 characters."""
    if isinstance(value, str):
        text = f"'{value}'" if value.isprintable() else json.dumps(value)
    elif isinstance(value, dict):
        text = "a mapping" if value else "an empty mapping"
    elif isinstance(value, list):
        text = "a list" if value else "an empty list"
    else:
        text = "nothing" if value is None else json.dumps(value)
    if len(text) <= 60:
        return text
    quote = text[0] if isinstance(value, str) else ""
    return f"{text[:56]}...{quote}"


class _Reader:
    """Builds a document from parser events, without recursion."""

    def __init__(self) -> None:
        self.document = Document()
        self._open: list[_Open] = []
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """Add one event."""
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise Refused(Problem("", "a second document begins here; a recipe is one document", line))
        elif isinstance(event, yaml.AliasEvent):
            raise Refused(Problem(self._here(), f"aliases (*{event.anchor}) are not read; write the value out", line))
        elif isinstance(event, yaml.ScalarEvent):
            self._check_tag(event, line)
            if self._wants_key():
                self._take_key(event.value, line)
            else:
                self._take_value(scalar(event.value) if event.implicit[0] else event.value, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._check_tag(event, line)
            self._begin({} if isinstance(event, yaml.MappingStartEvent) else [], line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()

    def _check_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int | None) -> None:
        if event.tag is not None:
            raise Refused(Problem(self._here(), f"tags ({shown(event.tag)}) are not read; write a plain value", line))

    def _wants_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._open[-1].key is None

    def _here(self) -> str:
        return key_name(self._path()) if self._open else ""

    def _path(self) -> KeyPath:
        """Return the path of the value that comes next."""
        if not self._open:
            return ()
        top = self._open[-1]
        if isinstance(top.value, list):
            return (*top.path, len(top.value))
        return top.path if top.key is None else (*top.path, top.key)

    def _take_key(self, key: str, line: int | None) -> None:
        top = self._open[-1]
        assert isinstance(top.value, dict)
        top.key = key
        path = (*top.path, key)
        if key in top.value:
            first = self.document.lines.get(path)
            self.document.problems.append(Problem(key_name(path), f"given twice, first in line {first}", line))
        elif line is not None:
            self.document.lines[path] = line

    def _take_value(self, value: Any, line: int | None) -> None:
        path = self._path()
        if isinstance(value, float) and not math.isfinite(value):
            self._bad_value(path, "numbers must be finite", line)
        elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            self._bad_value(path, "half of a surrogate pair is no character", line)
            value = ""
        self._put(value, line)

    def _bad_value(self, path: KeyPath, message: str, line: int | None) -> None:
        self.document.problems.append(Problem(key_name(path), message, line))

    def _begin(self, value: dict[str, Any] | list[Any], line: int | None) -> None:
        if self._wants_key():
            raise Refused(Problem(self._here(), "a key must be plain text", line))
        if len(self._open) == MAX_DEPTH:
            raise Refused(Problem("", f"nested deeper than {MAX_DEPTH} levels; a recipe needs 5", line))
        opened = _Open(value, self._path())
        self._put(value, line)
        self._open.append(opened)

    def _put(self, value: Any, line: int | None) -> None:
        if not self._open:
            self.document.value = value
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            if line is not None:
                self.document.lines[(*top.path, len(top.value))] = line
            top.value.append(value)
        elif top.key is not None:
            top.value[top.key] = value
            top.key = None
