"""Building blocks of the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from compressor.report._format import one_line, without_paths


def text(value: str) -> str:
    """Return text from anywhere as harmless HTML: one line, escaped, absolute paths cut down to their last part."""
    return escape(without_paths(one_line(value)))


def section(title: str, lead: str, content: str) -> str:
    """Return a section, or nothing when it has no content."""
    if not content:
        return ""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{content}</section>\n"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), wide: Sequence[int] = ()
) -> str:
    """Return a table.

    Args:
        heads: column titles, plain text.
        rows: cells as HTML; the first cell of a row is its header.
        numbers: columns of numbers, right-aligned.
        wide: columns that a phone leaves out.
    """

    def attributes(column: int) -> str:
        names = [
            *(["n"] if column in numbers else []),
            *(["wide"] if column in wide else []),
            *(["name"] * (not column)),
        ]
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(f'<th scope="col"{attributes(i)}>{escape(title)}</th>' for i, title in enumerate(heads))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{attributes(i)}>{cell}</td>" if i else f'<th scope="row"{attributes(i)}>{cell}</th>'
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
