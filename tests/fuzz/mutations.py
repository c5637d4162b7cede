"""Alterations of bytes, text, JSON and directory entries, drawn from a seeded generator."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = "\x00deep\x00"
"""Stands in a tree for arrays nested far deeper than a parser's stack, which no tree can hold."""
SECRET = "secret.txt"
"""A file beside an input, to which links and paths lead."""

_SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1.0000001, 1e-320, 1e30, 1e308, float("nan"), float("inf"),
    2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**12, 10**30, 10**400,
    "", " ", "0", "nan", "null", "true", "auto", "..", "../" + SECRET, "/dev/zero", "/proc/self/environ", "~nobody/x",
    "a\x00b", "\x1b[31m", "\ufeff", "\u202e", "\u2028", "\U0001f600", "\ud800", "x" * 10_000, "é" * 300, "{{ 1/0 }}",
    "__class__", "$HOME", "%s%n", "12MB", "demo:train", "demo:nothing", [], {}, [[]], {"": None}, [0] * 1000, DEEP,
)  # fmt: skip
_WORDS = ("", "a", "id", "x" * 300, "\x00", "__proto__", "\ud800", "0", "samples", "model_type")


def odd(rng: Random) -> Any:
    """Return a value at some limit, of a random type."""
    return rng.choice(_SCALARS)


def alter_bytes(rng: Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or blank bytes; now and then nothing is left."""
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice((1, 2, 8, 64, 1000)))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + bytes(b ^ (1 << rng.randrange(8)) for b in data[at:to]) + data[to:],
        lambda: data[:at],
        lambda: data[:at] + rng.randbytes(rng.choice((1, 4, 50))) + data[at:],
        lambda: data[:at] + data[at:to] * rng.choice((2, 3, 100)) + data[to:],
        lambda: data[:at] + b"\0" * (to - at) + data[to:],
        lambda: data[:at] + data[to:],
        lambda: b"" if rng.random() < 0.2 else data + rng.choice((b"\n", b"\0", b"\xff\xfe", b" ")),
    )
    return rng.choice(ways)()


def alter_text(rng: Random, text: str) -> str:
    """Drop, repeat, swap or indent lines, or put an odd value in the place of a word."""
    lines = text.split("\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    way = rng.randrange(6)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines[at:at] = [lines[at]] * rng.choice((1, 2, 200))
    elif way == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif way == 3:
        lines[at] = rng.choice(("  ", "\t", "- ", "# ", "? ", "&a ", "*a ", "!!python/name:os.system ")) + lines[at]
    else:
        words = lines[at].split(" ")
        words[rng.randrange(len(words))] = as_text(odd(rng)) if way == 4 else rng.choice("{}[],:&*!|>'\"%@`#-?")
        lines[at] = " ".join(words)
    return "\n".join(lines)


def as_text(value: Any) -> str:
    """Return a value as JSON has it, deep nesting written out; strings with what UTF-8 cannot hold escaped."""
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)


def alter_tree(rng: Random, tree: Any) -> Any:
    """Replace, remove, rename, repeat or nest one part of a JSON value, in place where that is possible."""
    holder, key = _place(rng, tree)
    if holder is None:
        return odd(rng)
    way = rng.randrange(8)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[rng.choice(_WORDS)] = holder.pop(key)
    elif way == 2 and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice((1, 2, 500)))
    elif way == 3:
        holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
    elif way == 4 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = _near(rng, holder[key])
    else:
        holder[key] = odd(rng)
    return tree


def alter_json(rng: Random, text: str) -> str:
    """Alter the tree of a JSON text; sometimes its bytes, or a key is given twice."""
    way = rng.random()
    if way < 0.15:
        return alter_bytes(rng, text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):  # it was altered before
        return alter_bytes(rng, text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
    if way < 0.25 and isinstance(tree, dict) and tree:
        return text.replace("{", "{" + f"{json.dumps(rng.choice(list(tree)))}: {as_text(odd(rng))},", 1)
    return as_text(alter_tree(rng, tree))


def alter_entry(rng: Random, path: Path) -> None:
    """Make of a file nothing, an empty file, a folder, a pipe, or a link: to outside, to itself, to nowhere."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    secret = next((parent / SECRET for parent in path.parents if (parent / SECRET).is_file()), path.parent / SECRET)
    outside = os.path.relpath(secret, path.parent)
    ways: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: path.write_bytes(b""),
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(outside),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to("/dev/zero"),
    )
    rng.choice(ways)()


def is_plain(path: Path) -> bool:
    """Tell whether a path is a regular file itself: nothing is written through a link."""
    return path.is_file() and not path.is_symlink()


def write(path: Path, text: str) -> None:
    """Write a text that may hold what UTF-8 cannot."""
    path.write_bytes(text.encode("utf-8", "surrogateescape" if _escaped(text) else "surrogatepass"))


def _escaped(text: str) -> bool:
    return all(not 0xD800 <= ord(char) <= 0xDFFF or 0xDC80 <= ord(char) <= 0xDCFF for char in text)


def _near(rng: Random, number: float) -> float:
    return rng.choice((number - 1, number + 1, -number, number * 2, number * 1000, number // 2, number + 0.5, 0))


def _place(rng: Random, tree: Any) -> tuple[Any, Any]:
    """Return a random container within a tree and a key of it; None where there is no container with anything in it."""
    places = list(_places(tree))
    return rng.choice(places) if places else (None, None)


def _places(tree: Any, most: int = 400) -> list[tuple[Any, Any]]:
    """Return containers with their keys, the outer ones first; of long lists and tables a few entries alone."""
    found: list[tuple[Any, Any]] = []
    queue = [tree]
    while queue and len(found) < most:
        holder = queue.pop(0)
        keys = (
            list(holder) if isinstance(holder, dict) else list(range(len(holder))) if isinstance(holder, list) else []
        )
        for key in keys[:20]:
            found.append((holder, key))
            queue.append(holder[key])
    return found
