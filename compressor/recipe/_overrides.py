"""`--set passes.0.cfsp.sparsity=0.4`: values given on the command line in place of the file's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from compressor.errors import Problem
from compressor.recipe._yaml import Document, KeyPath, Refused, key_name, read, shown
from compressor.recipe.metrics import GATES


class Overrides:
    """The overrides of one run, applied to one document in the order in which they were given."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Take the texts behind `--set`."""
        self._texts = texts
        self._applied: list[tuple[str, str]] = []
        self.problems: list[Problem] = []

    def apply(self, document: Document) -> None:
        """Put the values into the document; what cannot be applied goes to `problems`."""
        for text in self._texts:
            try:
                parts, value = _parse(text)
                path = _put(document.value, parts, value)
            except Refused as error:
                self.problems.append(Problem(_place(text), error.problem.message))
                continue
            self._applied.append((key_name(path), text))
            for known in [known for known in document.lines if known[: len(path)] == path]:
                del document.lines[known]

    def attribute(self, problem: Problem) -> Problem:
        """Return the problem with the override that caused it as its place, or as it is."""
        for name, text in reversed(self._applied):
            rest = problem.where[len(name) :]
            if problem.where == name:
                return Problem(_place(text), problem.message)
            if problem.where.startswith(name) and rest[0] in ".[":
                return Problem(f"{_place(text)}: {problem.where}", problem.message)
        return problem


def _place(text: str) -> str:
    short = text if len(text) <= 80 else f"{text[:77]}..."
    return f"--set {short if short.isprintable() else shown(short)}"


def _parse(text: str) -> tuple[list[str], Any]:
    """Return the parts of the key and the value, which is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Refused(Problem("", "expected key=value, such as calibration.samples=32"))
    # Messages write a list position as [0]; it may be given like that, too.
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    parts = _with_gate(parts)
    if not all(parts):
        raise Refused(Problem("", "a part of the key is empty; write it such as passes.0.cfsp.sparsity=0.4"))
    document = read(value)
    if document.problems:
        raise Refused(document.problems[0])
    return parts, document.value


def _with_gate(parts: list[str]) -> list[str]:
    """Join the parts of a gate's name under `verify`, which has dots in it."""
    for end in range(len(parts), 1, -1):
        if parts[0] == "verify" and (name := ".".join(parts[1:end])) in GATES:
            return ["verify", name, *parts[end:]]
    return parts


def _put(holder: Any, parts: Sequence[str], new: Any) -> KeyPath:
    """Replace the value under a key and return the path to it.

    Mappings on the way that are absent are made (validation knows whether the recipe has such keys), except in a pass,
    whose key is a method that is there or not.
    """
    path: KeyPath = ()
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = key_name(path) or "the recipe"
        if isinstance(holder, list):
            if not part.isdecimal() or len(part) > 9 or int(part) >= len(holder):
                count = f"has positions 0 to {len(holder) - 1}" if holder else "is empty"
                raise Refused(Problem("", f"{where} is a list and {count}; {shown(part)} is none of them"))
            key: str | int = int(part)
        elif isinstance(holder, dict):
            if path[:1] == ("passes",) and len(path) == 2 and part not in holder:
                held = ", ".join(map(shown, holder)) or "nothing"
                raise Refused(Problem("", f"{where} holds {held}, not {shown(part)}"))
            key = part
        else:
            raise Refused(Problem("", f"{where} is {shown(holder)}, which has no key {shown(part)}"))
        path = (*path, key)
        if last:
            holder[key] = new
        else:
            if isinstance(holder, dict) and holder.get(key) is None:
                holder[key] = {}
            holder = holder[key]
    return path
