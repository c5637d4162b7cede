"""Tables on disk: sentences with scores or labels (.csv, .tsv) and the labels of an image folder.

Which labels a table must hold follows from the model's head: the index of one class, one real number, or a set of
labels (`compressor.architectures.tasks.Head`).

With a header the columns are found by their names, without one by their order. A table whose columns cannot be told is
an error. A .csv file is divided by commas, semicolons or tabs, whichever its first rows show; a .tsv file by tabs.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from compressor.architectures.tasks import Head
from compressor.data.texts import read_text
from compressor.errors import DataError

_FIRST = ("sentence1", "text1", "sentencea", "texta", "question1", "query", "premise", "prompt")
_SECOND = (
    "sentence2", "text2", "sentenceb", "textb", "question2", "passage", "document", "hypothesis", "response",
)  # fmt: skip
_SINGLE = ("sentence", "text")
_PROMPT = ("prompt",)
_NUMBER = ("score", "label", "similarity", "similarityscore", "value")
_SETS = ("labels", "label")
_FILE = ("file", "filename", "image", "path")
_CLASS = ("label", "class")
_NAMES = frozenset((*_FIRST, *_SECOND, *_SINGLE, *_NUMBER, *_SETS, *_FILE, *_CLASS))
"""Names of columns, in lower case and without spaces, underscores and hyphens."""

_SENTENCE_HINT = (
    "Pairs have the columns sentence1, sentence2 and score (or similarity, label), single sentences the columns"
    " sentence (or text) and label. Without a header the order counts: sentence, sentence, score; or sentence, label."
)
_PROMPT_HINT = "Prompts are a table with the columns label and prompt, and a row or more for each label."
_LABEL_HINT = "An image folder's labels.csv has the columns file and label."
_SET_HINT = (
    "Several labels at once stand in a column labels, by name or index and divided by spaces, or in a column of 0 and 1"
    " for each label, named as in the model's config.json (id2label). Either way the table has a header."
)
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
        sets: the labels of each row, for a model that gives any number of them; empty where the table has none.
    """

    texts: list[tuple[str, ...]]
    numbers: list[float]
    sets: list[tuple[int, ...]] = field(default_factory=list)


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


def read_sentences(path: Path, key: str, head: Head | None = None) -> Sentences:
    """Read a .csv or .tsv table of sentences or pairs; `key` is the recipe key that a message names.

    Args:
        path: the file.
        key: recipe key.
        head: of the classifier that the labels are for; None allows any number.

    Raises:
        DataError: the file is no table, its columns cannot be told, or a score or label is not what it must be.
    """
    table = _read(path, key)
    if not table.rows:
        return Sentences([], [])
    if head is not None and head.kind == "label sets":
        return _with_sets(table, _text_columns(table), head)
    texts, number = _sentence_columns(table)
    items = [tuple(row[i] for i in texts) for _, row in table.rows]
    return Sentences(items, _numbers(table, number, head) if number is not None else [])


def read_labels(path: Path, key: str, head: Head | None) -> Sentences:
    """Read the table of an image folder: file names, one in each of `texts`, and the labels that a head takes.

    Without a head, which an encoder has not got, labels are left out.

    Raises:
        DataError: the file is no table, its columns cannot be told, a label is not what it must be, or a file has two.
    """
    table = _read(path, key)
    if not table.rows:
        return Sentences([], [])
    if head is None:
        file = table.find(_FILE) if table.header else 0
        if file is None:
            raise table.unknown(_LABEL_HINT)
        return Sentences([(name,) for name in dict.fromkeys(row[file] for _, row in table.rows)], [])
    if head.kind == "label sets":
        file = table.find(_FILE)
        found = _with_sets(table, (file,), head) if file is not None else Sentences([], [])
        if not found.sets:
            raise table.unknown(f"An image folder's labels.csv has the column file. {_SET_HINT}")
        return found
    names = _CLASS if head.kind == "labels" else (*_CLASS, *_NUMBER)
    file, label = (table.find(_FILE), table.find(names)) if table.header else (0, 1)
    if file is None or label is None or (not table.header and table.width != 2):
        raise table.unknown(_LABEL_HINT)
    numbers = _numbers(table, label, head)
    first: dict[str, float] = {}
    for (line, row), number in zip(table.rows, numbers, strict=True):
        if first.setdefault(row[file], number) != number:
            raise DataError(f"{table.where} line {line}: {row[file]:.80} has the label {first[row[file]]:g} already")
    return Sentences([(row[file],) for _, row in table.rows], numbers)


def read_prompts(path: Path, key: str) -> list[tuple[str, str]]:
    """Return label and prompt, row by row, of the texts that stand for the labels of images.

    Raises:
        DataError: the file is no table with the columns label and prompt, a label is empty, or there is but one.
    """
    table = _read(path, key)
    label, prompt = table.find(_CLASS), table.find((*_PROMPT, *_SINGLE))
    if label is None or prompt is None:
        raise table.unknown(_PROMPT_HINT)
    rows = [(row[label].strip(), row[prompt].strip()) for _, row in table.rows]
    for (line, _), (name, text) in zip(table.rows, rows, strict=True):
        if not name or not text:
            raise DataError(f"{table.where} line {line}: the {'prompt' if name else 'label'} is empty")
    if len({name for name, _ in rows}) < 2:
        raise DataError(f"{table.where}: there are prompts for fewer than two labels", hint=_PROMPT_HINT)
    return rows


def read_named_labels(path: Path, key: str, names: Sequence[str]) -> Sentences:
    """Read the table of an image folder whose labels are names, and give their places in `names`.

    Raises:
        DataError: the file is no table of file and label, a label is not among the names, or a file has two.
    """
    table = _read(path, key)
    file, label = (table.find(_FILE), table.find(_CLASS)) if table.header else (0, 1)
    if table.rows and (file is None or label is None or table.width < 2):
        raise table.unknown(_LABEL_HINT)
    places = {name: float(place) for place, name in enumerate(names)}
    found: dict[str, float] = {}
    for line, row in table.rows:
        name, stated = row[file or 0], row[label or 0].strip()
        if stated not in places:
            raise DataError(
                f"{table.where} line {line}: no prompt stands for the label {stated!r:.40}",
                hint="evaluation.prompts has a row for each label, in the same words.",
            )
        if found.setdefault(name, places[stated]) != places[stated]:
            raise DataError(f"{table.where} line {line}: {name:.80} has another label already")
    return Sentences([(name,) for name in found], list(found.values()))


def _sentence_columns(table: _Table) -> tuple[tuple[int, ...], int | None]:
    """Return the columns of the sentences, and that of the number where there is one."""
    if not table.header:
        if table.width > 3:
            raise table.unknown(_SENTENCE_HINT)
        return tuple(range(max(1, table.width - 1))), table.width - 1 if table.width > 1 else None
    texts, number = _text_columns(table), table.find(_NUMBER)
    if len(texts) == 1 and _plain(table.header[texts[0]]) in _PROMPT:
        number = None  # what a prompt stands for is a name
    if len(texts) == 2 and number is None:
        raise table.unknown(_SENTENCE_HINT)
    return texts, number


def _text_columns(table: _Table) -> tuple[int, ...]:
    """Return the columns of the sentences, one or two, by their names."""
    first, second, single = table.find(_FIRST), table.find(_SECOND), table.find(_SINGLE)
    if first is not None and second is not None:
        return first, second
    if first is not None and single is None and _plain(table.header[first]) in _PROMPT:
        return (first,)
    if single is None or first is not None or second is not None:
        raise table.unknown(_SENTENCE_HINT)
    return (single,)


def _numbers(table: _Table, column: int, head: Head | None) -> list[float]:
    """Return the numbers of a column: class indices for a head that has classes, else any."""
    classes = len(head.names) if head is not None and head.kind == "labels" else None
    numbers = []
    for line, row in table.rows:
        value = _number(row[column])
        if value is None or not math.isfinite(value):
            raise DataError(
                f"{table.where} line {line}: the score or label is {row[column]!r:.40}; allowed: finite numbers",
                hint=_SENTENCE_HINT,
            )
        if classes is not None and value not in range(classes):
            raise _no_class(table, line, row[column], classes)
        numbers.append(value)
    return numbers


def _with_sets(table: _Table, texts: tuple[int, ...], head: Head) -> Sentences:
    """Return the rows with the labels of each, from one column of lists or from a column of 0 and 1 for each label."""
    items = [tuple(row[i] for i in texts) for _, row in table.rows]
    flags = [table.find((_plain(name),)) for name in head.names]
    if None not in flags:
        sets = [_flagged(table, line, [row[i] for i in flags if i is not None]) for line, row in table.rows]
        return Sentences(items, [], sets)
    column = table.find(_SETS)
    if column is None:
        if any(flag is not None for flag in flags):
            raise table.unknown(_SET_HINT)
        return Sentences(items, [])
    known = {name.strip().lower(): index for index, name in enumerate(head.names)}
    return Sentences(items, [], [_listed(table, line, row[column], known) for line, row in table.rows])


def _flagged(table: _Table, line: int, cells: Sequence[str]) -> tuple[int, ...]:
    """Return which cells of a row are 1."""
    values = [_number(cell) for cell in cells]
    if wrong := [cell for cell, value in zip(cells, values, strict=True) if value not in (0, 1)]:
        raise DataError(f"{table.where} line {line}: {wrong[0]!r:.40} for a label; allowed: 0 and 1", hint=_SET_HINT)
    return tuple(index for index, value in enumerate(values) if value)


def _listed(table: _Table, line: int, cell: str, known: Mapping[str, int]) -> tuple[int, ...]:
    """Return the labels that a cell lists by name or index; an empty one lists none."""
    text = cell.strip().strip("[]").strip().lower()
    if (alone := text.strip("'\"")) in known:
        return (known[alone],)
    parts = [part.strip().strip("'\"") for part in re.split(r"[,;|]" if re.search(r"[,;|]", text) else r"\s", text)]
    found = set()
    for part in filter(None, parts):
        index = known.get(part, int(part) if part.isdecimal() and len(part) < 10 else len(known))
        if index >= len(known):
            raise _no_class(table, line, part, len(known))
        found.add(index)
    return tuple(sorted(found))


def _no_class(table: _Table, line: int, cell: str, classes: int) -> DataError:
    return DataError(
        f"{table.where} line {line}: label {cell!r:.40}; the model knows classes 0 to {classes - 1}",
        hint="Labels are class indices as the model's config.json numbers them (id2label).",
    )


def _read(path: Path, key: str) -> _Table:
    where = f"{key}: {path.name}"
    text = read_text(path, key)
    if "\0" in text:
        raise DataError(f"{where} holds a NUL, which is no character of a table", hint="Save it as UTF-8 text.")
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
