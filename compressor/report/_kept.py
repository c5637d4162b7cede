"""What the page draws of kept tokens: maps over the patches of an image, one for each block in which tokens go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from compressor.report.kept_schema import KeptTokens
from compressor.report.schema import Report

_STEPS = 6
"""Tones in which shares are drawn."""


@dataclass(frozen=True)
class Map:
    """One map: its caption, and the patches of each tone as the path of an SVG, in patches from the upper left.

    Attributes:
        label: below it.
        tones: opacity and path; patches that are in none of them are bare.
    """

    label: str
    tones: list[tuple[float, Markup]]


@dataclass(frozen=True)
class Row:
    """Maps of one image, or of all together.

    Attributes:
        title: what of.
        picture: the image as a `data:` URI; None where there is none.
        maps: one for each block.
    """

    title: str
    picture: Markup | None
    maps: list[Map]


def kept_rows(report: Report) -> list[Row]:
    """Return the shares over all images, and then what is kept of each image that is shown."""
    kept = report.kept_tokens
    if kept is None:
        return []
    patches = kept.grid[0] * kept.grid[1]
    shares = [list(bytes.fromhex(text)) for text in kept.shares]
    average = [
        Map(f"block {block}: {100 * sum(values) / 255 / patches:.0f} %", _tones(values, kept.grid[1]))
        for block, values in zip(kept.blocks, shares, strict=True)
    ]
    rows = [Row(f"On average over {kept.samples} images", None, average)]
    for number, image in enumerate(kept.images, 1):
        maps = [_mask(kept, block, text) for block, text in zip(kept.blocks, image.kept, strict=True)]
        rows.append(Row(f"Image {number}", Markup(image.picture), maps))
    return rows


def _mask(kept: KeptTokens, block: int, text: str) -> Map:
    """Return the map of one image behind one block: what is gone is dark."""
    patches = kept.grid[0] * kept.grid[1]
    bits = "".join(f"{byte:08b}" for byte in bytes.fromhex(text))[:patches]
    label = f"block {block}: {bits.count('1')} of {patches}"
    return Map(label, [(1.0, _path([bit == "0" for bit in bits], kept.grid[1]))])


def _tones(shares: Sequence[int], columns: int) -> list[tuple[float, Markup]]:
    """Return patches by how often they are kept, 0 to 255, in a few tones."""
    steps = [round(share * _STEPS / 255) for share in shares]
    return [
        (step / _STEPS, _path([s == step for s in steps], columns)) for step in range(1, _STEPS + 1) if step in steps
    ]


def _path(chosen: Sequence[bool], columns: int) -> Markup:
    """Return the path around the chosen patches, given row by row: one rectangle for each run in a row."""
    return Markup("".join(_runs(chosen, columns)))


def _runs(chosen: Sequence[bool], columns: int) -> Iterable[str]:
    for start in range(0, len(chosen), columns):
        x = 0
        for there, run in groupby(chosen[start : start + columns]):
            wide = len(list(run))
            if there:
                yield f"M{x} {start // columns}h{wide}v1h-{wide}z"
            x += wide
