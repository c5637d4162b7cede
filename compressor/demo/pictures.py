"""Generates small pictures of coloured digits, and questions about them that need the right part of the picture.

A picture has nine cells of 16 pixels, and in one to four of them a digit: no two alike, no two of one colour but where
colours are counted. Digits are drawn in two sizes, anywhere in their cell, on a grey ground with noise. The questions:
which digit has a colour, which colour a digit has, where one of them is, how many there are, how many of a colour. Who
loses the patches of one small digit cannot answer three of these five.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE, CELL, PATCH = 48, 16, 8
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "purple": (160, 50, 200),
    "orange": (240, 130, 30),
}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
KINDS = ("digit", "colour", "where", "digits", "count")
"""Of questions."""
_ASKING = ("which", "digit", "digits", "is", "what", "colour", "the", "where", "how", "many", "are", "there", "?")
WORDS = sorted({*DIGITS, *COLOURS, *ROWS, *COLUMNS, *_ASKING})
"""All words of questions and answers."""

_FONT = (
    *("01110100011001110101110011000101110", "00100011000010000100001000010001110"),
    *("01110100010000100010001000100011111", "11111000100010000010000011000101110"),
    *("00010001100101010010111110001000010", "11111100001111000001000011000101110"),
    *("00110010001000011110100011000101110", "11111000010001000100010000100001000"),
    *("01110100011000101110100011000101110", "01110100011000101111000010001001100"),
)
"""Seven rows of five dots for each digit."""
_GLYPHS = tuple(np.asarray([int(dot) for dot in dots], dtype=np.uint8).reshape(7, 5) for dots in _FONT)
_LARGE = 0.6
"""Share of digits drawn at twice the size of the others."""
_MOST = 4


@dataclass(frozen=True)
class Thing:
    """One digit of a picture: its value, the name of its colour, and its cell from 0 to 8."""

    digit: int
    colour: str
    cell: int

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{ROWS[self.cell // 3]} {COLUMNS[self.cell % 3]}"


@dataclass(frozen=True)
class Picture:
    """A picture, what is on it, and questions with their answers.

    Attributes:
        pixels: [height, width, 3], bytes.
        things: the digits.
        questions: (kind, question, answer), one of each kind that the picture allows.
    """

    pixels: NDArray[np.uint8]
    things: tuple[Thing, ...]
    questions: tuple[tuple[str, str, str], ...]


def pictures(split: str, seed: int = 0) -> Iterator[Picture]:
    """Yield pictures without end, the same for the same split (`train`, `valid`) and seed."""
    chance = random.Random(f"{split} {seed}")
    while True:
        yield _picture(chance)


def _picture(chance: random.Random) -> Picture:
    count = chance.randint(1, _MOST)
    digits, cells = chance.sample(range(10), count), chance.sample(range(9), count)
    names = list(COLOURS)
    colours = chance.sample(names, count)
    if count > 1 and chance.random() < 0.3:
        colours[0] = colours[1]
    things = tuple(Thing(*parts) for parts in zip(digits, colours, cells, strict=True))
    noise = np.random.default_rng(chance.getrandbits(32))
    pixels = chance.randint(170, 235) + noise.integers(-12, 13, (SIDE, SIDE, 3))
    for thing in things:
        _draw(pixels, thing, chance)
    return Picture(pixels.clip(0, 255).astype(np.uint8), things, tuple(_questions(things, chance)))


def _draw(pixels: NDArray[np.int64], thing: Thing, chance: random.Random) -> None:
    scale = 2 if chance.random() < _LARGE else 1
    glyph = _GLYPHS[thing.digit].repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = glyph.shape
    top = thing.cell // 3 * CELL + chance.randint(0, CELL - height)
    left = thing.cell % 3 * CELL + chance.randint(0, CELL - width)
    region = pixels[top : top + height, left : left + width]
    region[glyph == 1] = COLOURS[thing.colour]


def _questions(things: tuple[Thing, ...], chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield one question of each kind; those about one colour only where a single digit has it."""
    colours = [thing.colour for thing in things]
    single = [thing for thing in things if colours.count(thing.colour) == 1]
    if single:
        asked = chance.choice(single)
        yield "digit", f"which digit is {asked.colour} ?", DIGITS[asked.digit]
        asked = chance.choice(single)
        yield "where", f"where is the {asked.colour} digit ?", asked.place
    asked = chance.choice(things)
    yield "colour", f"what colour is the {DIGITS[asked.digit]} ?", asked.colour
    yield "digits", "how many digits are there ?", DIGITS[len(things)]
    colour = chance.choice(colours if chance.random() < 0.7 else list(COLOURS))
    yield "count", f"how many digits are {colour} ?", DIGITS[colours.count(colour)]
