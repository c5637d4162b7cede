"""Pydantic's errors as problems that say what, where, what was given, what is allowed and what was meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from compressor.errors import Problem, did_you_mean
from compressor.recipe._yaml import LARGEST, Document, KeyPath, key_name, shown

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list without repetition",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "nothing",
}
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def validate(
    model: type[BaseModel], value: Any, where: KeyPath, document: Document
) -> tuple[BaseModel | None, list[Problem]]:
    """Validate a value that stands at `where` in the document.

    Validation happens in JSON's terms: no silent conversion (`"4"` is no number), but lists for tuples and names for
    enumerations, whatever a method's options use.

    Returns:
        The model, or None and what is wrong.
    """
    try:
        return model.model_validate_json(json.dumps(value), strict=True), []
    except ValidationError as error:
        return None, list(_problems(error, model, value, where, document))


def line_of(path: KeyPath, document: Document) -> int | None:
    """Return the line of a key; of the nearest key around it where it is not in the file."""
    while path:
        if path in document.lines:
            return document.lines[path]
        path = path[:-1]
    return None


def _problems(
    error: ValidationError, model: type[BaseModel], value: Any, where: KeyPath, document: Document
) -> Iterator[Problem]:
    messages: dict[KeyPath, list[str]] = {}
    wrong: dict[KeyPath, str] = {}  # of the right type, so what other members of a union allow says nothing
    for item in error.errors(include_url=False):
        missing = item["type"] == "missing"
        path, given = _locate(item["loc"], value, missing=missing or item["type"] == "extra_forbidden")
        message = _message(item, model, path, given)
        if message not in messages.setdefault(path, []):
            messages[path].append(message)
        if item["type"] == "value_error":
            wrong.setdefault(path, message)
    for path, found in messages.items():
        full = (*where, *path)
        yield Problem(key_name(full), wrong.get(path) or _joined(found), line_of(full, document))


def _joined(messages: Sequence[str]) -> str:
    """Join what the members of a union say: `allowed: auto or an integer, got 'x'`."""
    if len(messages) == 1:
        return messages[0]
    heads = [message.split(", got ")[0] for message in messages]
    tail = next((f", got {m.split(', got ', 1)[1]}" for m in messages if ", got " in m), "")
    choices = [choice for head in heads for choice in _choices(head)]
    return f"allowed: {' or '.join(filter(None, [', '.join(choices[:-1]), choices[-1]]))}{tail}"


def _choices(head: str) -> list[str]:
    """Return what one member of a union allows: its words, its type, or its limits."""
    kind, _, rest = head.partition(" ")
    if kind == "allowed:":
        return re.split(", | or ", rest)
    if kind == "must":
        return [f"a number of {rest.removeprefix('be ')}"]
    return [rest if kind == "expected" else head]


def _locate(loc: Sequence[str | int], value: Any, *, missing: bool) -> tuple[KeyPath, Any]:
    """Return the part of a location that is a path in the value, and what is there; the rest names union members.

    Args:
        loc: pydantic's location.
        value: what was validated.
        missing: the last part names a key that is absent, or its value is of no interest.
    """
    path: list[str | int] = []
    for part in loc[:-1] if missing else loc:
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
            path.append(part)
    if missing and loc:
        path.append(loc[-1])
    return tuple(path), value


def _message(item: Any, model: type[BaseModel], path: KeyPath, given: Any) -> str:
    kind, context = item["type"], item.get("ctx") or {}
    if kind == "extra_forbidden":
        holder = _model_at(model, path[:-1])
        allowed = list(holder.model_fields) if holder else []
        name = str(path[-1]) if path else ""
        listed = f"; allowed: {', '.join(allowed)}" if allowed else "; nothing is allowed here"
        return f"unknown key{did_you_mean(name, allowed)}{listed}"
    if kind == "missing":
        holder = _model_at(model, path[:-1])
        field = holder.model_fields.get(str(path[-1])) if holder and path else None
        return "required, but missing" + (f": {field.description}" if field and field.description else "")
    if kind in ("literal_error", "enum"):
        expected = str(context.get("expected", "")).replace("False", "false")
        words = re.findall(r"'([^']*)'", expected)
        meant = did_you_mean(given, words) if isinstance(given, str) else ""
        return f"allowed: {expected.replace(chr(39), '')}, got {shown(given)}{meant}"
    if kind in ("int_type", "int_from_float") and isinstance(given, float) and abs(given) >= LARGEST:
        return f"must be {_end(model, path, given)}, got {shown(given)}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {shown(given)}"
    if kind in _LIMITS:
        key, words_ = _LIMITS[kind]
        return f"must be {words_} {context[key]}, got {shown(given)}"
    if kind in ("value_error", "assertion_error"):
        return _with_given(str(context.get("error", item["msg"])), given)
    if kind == "string_pattern_mismatch":
        return f"must match {context.get('pattern')}, got {shown(given)}"
    return _with_given(str(item["msg"])[:1].lower() + str(item["msg"])[1:], given)


def _with_given(message: str, given: Any) -> str:
    return message if isinstance(given, dict | list) else f"{message}, got {shown(given)}"


def _end(model: type[BaseModel], path: KeyPath, given: float) -> str:
    """Return the bound that an integer beyond all that are read misses: `at most 100`."""
    holder = _model_at(model, path[:-1])
    field = holder.model_fields.get(str(path[-1])) if holder and path else None
    side = "l" if given > 0 else "g"
    for item in field.metadata if field else ():
        for key, words in _LIMITS.values():
            if key.startswith(side) and hasattr(item, key):
                return f"{words} {getattr(item, key)}"
    return f"at most {LARGEST}" if given > 0 else f"at least {-LARGEST}"


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the model of the mapping at `path`."""
    found: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            continue
        field = found.model_fields.get(part) if found else None
        found = _model_in(field.annotation) if field else None
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first pydantic model within a type such as `list[Bound] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for member in get_args(annotation) if (model := _model_in(member))), None)
