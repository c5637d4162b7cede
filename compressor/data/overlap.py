"""Whether two sets of data are the same for the most part, found out from a few places in them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_SNIPPETS, _WIDTH = 16, 160
"""Places at which a text is looked at, and bytes that are taken there: enough not to be equal by chance."""
_CHUNK, _MOST_CHUNKS = 1 << 23, 8
_HEAD, _MOST_FILES = 4096, 10_000


def is_mostly_shared(first: Path, second: Path) -> bool:
    """Tell whether one of two files, or folders, holds the most part of the other, word for word.

    Of a file at most 64 MiB are read, of a folder the heads of its first ten thousand files; what cannot be read is
    taken for different.
    """
    try:
        if first.samefile(second):
            return True
        if first.is_file() and second.is_file():
            return _is_mostly_in(first, second) or _is_mostly_in(second, first)
        if first.is_dir() and second.is_dir():
            ours, others = set(_heads(first)), set(_heads(second))
            return 2 * len(ours & others) >= min(len(ours), len(others)) > 0
    except OSError:
        pass
    return False


def _is_mostly_in(part: Path, whole: Path) -> bool:
    """Tell whether most snippets of one text stand in the other."""
    snippets = set(_snippets(part))
    found: set[bytes] = set()
    tail = b""
    with whole.open("rb") as file:
        for _ in range(_MOST_CHUNKS):
            read = file.read(_CHUNK)
            chunk = tail + read
            found |= {snippet for snippet in snippets - found if snippet in chunk}
            if len(read) < _CHUNK:
                break
            tail = chunk[-_WIDTH:]
    return 2 * len(found) >= len(snippets) > 0


def _snippets(path: Path) -> Iterator[bytes]:
    """Yield pieces of a text at equal distances; none of blanks alone."""
    room = max(path.stat().st_size - _WIDTH, 0)
    with path.open("rb") as file:
        for index in range(_SNIPPETS):
            file.seek(room * index // (_SNIPPETS - 1))
            piece = file.read(_WIDTH)
            if piece.strip():
                yield piece


def _heads(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Yield length and first bytes of every file but tables: the labels of two sets of images may be alike."""
    files = (path for path in folder.rglob("*") if path.suffix not in (".csv", ".tsv") and path.is_file())
    for path in islice(files, _MOST_FILES):
        with path.open("rb") as file:
            yield path.stat().st_size, file.read(_HEAD)
