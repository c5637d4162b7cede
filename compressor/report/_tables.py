"""The few shapes of table that the terminal output is made of."""

from __future__ import annotations

from collections.abc import Collection

from rich import box
from rich.table import Table
from rich.text import Text

from compressor.report._format import one_line

NARROW = 72
"""Fewer columns than this, and tables leave out what the reader can do without."""


def grid(*headers: str, header: bool = True, right: Collection[str] = ()) -> Table:
    """Return a table with plain rules whose cells wrap rather than vanish; columns in `right` are right-aligned."""
    table = Table(box=box.SIMPLE, show_header=header, pad_edge=False, show_edge=False, header_style="dim")
    for name in headers:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def figure_table(*headers: str) -> Table:
    """Return a table of figures: names at the left, numbers right-aligned under `headers`."""
    return grid("", *headers, right=headers)


def cell(text: str) -> Text:
    """Return text from a model or a recipe as a cell: no markup, no control characters."""
    return Text(one_line(text), overflow="fold")


def fold(text: str, style: str = "") -> Text:
    """Return our own text as a cell that folds instead of losing its end."""
    return Text(text, style=style, overflow="fold")
