"""Tables on disk: sentences with scores or labels (.csv, .tsv) and the labels of an image folder.

With a header the columns are found by their names, without one by their order. A table whose columns cannot be told is
an error. A .csv file is divided by commas, semicolons or tabs, whichever its first rows show; a .tsv file by tabs.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from compressor.data.texts import read_text
from compressor.errors import DataError

_FIRST = ("sentence1", "text1", "sentencea", "texta", "question1")
_SECOND = ("sentence2", "text2", "sentenceb", "textb", "question2")
_SINGLE = ("sentence", "text")
_NUMBER = ("score", "label", "similarity", "similarityscore")
_FILE = ("file", "filename", "image", "path")
_CLASS = ("label", "class")
_NAMES = frozenset((*_FIRST, *_SECOND, *_SINGLE, *_NUMBER, *_FILE, *_CLASS))
"""Names of columns, in lower case and without spaces, underscores and hyphens."""

_SENTENCE_HINT = (
    "Pairs have the columns sentence1, sentence2 and score (or similarity, label), single sentences the columns"
    " sentence (or text) and label. Without a header the order counts: sentence, sentence, score; or sentence, label."
)
_LABEL_HINT = "An image folder's labels.csv has the columns file and label."
_DELIMITERS = (",", ";", "\t")
_SNIFFED_ROWS = 50

Row = tuple[int, list[str]]
"""Line of a file, from 1, and its cells."""


@dataclass(frozen=True)
class Sentences:
    """Rows of a table of sentences.

    Attributes:
        texts: one sentence or a pair, row by row.
        numbers: score or label of each row; empty where the table has none.
    """

    texts: list[tuple[str, ...]]
    numbers: list[float]


@dataclass(frozen=True)
class _Table:
    """A table: where errors say it is, its header (empty without one) and its rows, all of the same width."""

    where: str
    header: list[str]
    rows: list[Row]

    @property
    def width(self) -> int:
        return len(self.header or self.rows[0][1])

    def find(self, names: Sequence[str]) -> int | None:
        """Return the one column whose header is among `names`.

        Raises:
            DataError: there are several.
        """
        found = [i for i, cell in enumerate(self.header) if _plain(cell) in names]
        if len(found) > 1:
            columns = " and ".join(repr(self.header[i]) for i in found)
            raise DataError(f"{self.where}: the columns {columns} mean the same", hint="Keep one of them.")
        return found[0] if found else None

    def unknown(self, hint: str) -> DataError:
        """Return the error of a table whose columns cannot be told."""
        names = f"columns {', '.join(cell[:40] for cell in self.header)}" if self.header else f"{self.width} columns"
        return DataError(f"{self.where}: cannot tell what its {names} hold", hint=hint)


def read_sentences(path: Path, key: str, classes: int | None = None) -> Sentences:
    """Read a .csv or .tsv table of sentences or pairs; `key` is the recipe key that a message names.

    Args:
        path: the file.
        key: recipe key.
        classes: of a classifier, to which the labels of single sentences belong; None allows any number.

    Raises:
        DataError: the file is no table, its columns cannot be told, or a score or label is not what it must be.
    """
    table = _read(path, key)
    if not table.rows:
        return Sentences([], [])
    texts, number = _sentence_columns(table)
    numbers = []
    for line, row in table.rows if number is not None else []:
        value = _number(row[number or 0])
        if value is None or not math.isfinite(value):
            raise DataError(
                f"{table.where} line {line}: the score or label is {row[number or 0]!r:.40}; allowed: finite numbers",
                hint=_SENTENCE_HINT,
            )
        if classes is not None and len(texts) == 1 and value not in range(classes):
            raise _no_class(table, line, row[number or 0], classes)
        numbers.append(value)
    return Sentences([tuple(row[i] for i in texts) for _, row in table.rows], numbers)


def _sentence_columns(table: _Table) -> tuple[tuple[int, ...], int | None]:
    """Return the columns of the sentences, and that of the number where there is one."""
    if not table.header:
        if table.width > 3:
            raise table.unknown(_SENTENCE_HINT)
        return tuple(range(max(1, table.width - 1))), table.width - 1 if table.width > 1 else None
    first, second, single = table.find(_FIRST), table.find(_SECOND), table.find(_SINGLE)
    number = table.find(_NUMBER)
    if first is not None and second is not None and number is not None:
        return (first, second), number
    if single is None or first is not None or second is not None:
        raise table.unknown(_SENTENCE_HINT)
    return (single,), number


def read_labels(path: Path, key: str, classes: int) -> list[tuple[str, int]]:
    """Read file names and class indices below `classes`.

    Raises:
        DataError: the file is no table, its columns cannot be told, or a label is no class index.
    """
    table = _read(path, key)
    if not table.rows:
        return []
    file, label = (table.find(_FILE), table.find(_CLASS)) if table.header else (0, 1)
    if file is None or label is None or (not table.header and table.width != 2):
        raise table.unknown(_LABEL_HINT)
    found = []
    for line, row in table.rows:
        cell = row[label].strip()
        # The length too: Python makes no integers of very many digits.
        if not cell.isdecimal() or len(cell) > 9 or int(cell) >= classes:
            raise _no_class(table, line, cell, classes)
        found.append((row[file], int(cell)))
    return found


def _no_class(table: _Table, line: int, cell: str, classes: int) -> DataError:
    return DataError(
        f"{table.where} line {line}: label {cell!r:.40}; the model knows classes 0 to {classes - 1}",
        hint="Labels are class indices as the model's config.json numbers them (id2label).",
    )


def _read(path: Path, key: str) -> _Table:
    where = f"{key}: {path.name}"
    text = read_text(path, key)
    try:
        rows = list(_rows(text, **_dialect(path, text)))
    except csv.Error as error:
        raise DataError(
            f"{where} is not a table that can be read: {error}",
            hint="Look for a quotation mark that is not closed; a cell has at most 131072 characters.",
        ) from error
    header: list[str] = []
    if rows and _is_header(rows[0][1]):
        header = rows.pop(0)[1]
    table = _Table(where, header, rows)
    for line, row in rows:
        if len(row) != table.width:
            raise DataError(
                f"{where} line {line}: {len(row)} columns, where the first row has {table.width}",
                hint="Put cells that hold a comma or another delimiter between quotation marks.",
            )
    return table


def _rows(text: str, **dialect: Any) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text), **dialect)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _dialect(path: Path, text: str) -> dict[str, Any]:
    """Return how the cells of a table are told apart: the delimiter that splits most rows alike, into most cells."""
    if path.suffix == ".tsv":
        return {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    widths = {}
    for delimiter in _DELIMITERS:
        sample = [row for _, row in islice(_rows(text, delimiter=delimiter), _SNIFFED_ROWS)]
        if sample and any(_plain(cell) in _NAMES for cell in sample[0]):
            return {"delimiter": delimiter}
        width, count = Counter(map(len, sample)).most_common(1)[0] if sample else (0, 0)
        widths[delimiter] = width if 2 * count > len(sample) else 0
    return {"delimiter": max(_DELIMITERS, key=widths.__getitem__)}


def _is_header(row: list[str]) -> bool:
    """Tell whether the first row names columns: several cells and no number, or the name of sentences."""
    if len(row) == 1:
        return _plain(row[0]) in _SINGLE
    return all(_number(cell) is None for cell in row)


def _plain(name: str) -> str:
    return name.strip().lower().translate({ord(character): None for character in " _-"})


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
