"""Data that was not held out, and the demo's stories for another model, are found and said."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.data.doubts import doubts
from compressor.data.overlap import is_mostly_shared
from compressor.recipe import parse_recipe


def text(seed: int, words: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice("abcdefghij") * rng.randint(1, 9) for _ in range(words))


def superset(a: Path, b: Path) -> None:
    a.write_text(text(1, 9000) + "\n" + text(2, 5000))
    b.write_text(text(2, 5000))


def part(a: Path, b: Path) -> None:
    a.write_text(text(2, 5000))
    b.write_text(text(1, 9_000) + "\n" + text(2, 5000) + "\n" + text(3, 1000))


def mostly(a: Path, b: Path) -> None:
    a.write_text(text(1, 5000))
    b.write_text(text(1, 3000) + "\n" + text(2, 1000))


def link(a: Path, b: Path) -> None:
    a.write_text("x")
    b.symlink_to(a)


def other(a: Path, b: Path) -> None:
    a.write_text(text(1, 5000))
    b.write_text(text(2, 5000))


def little(a: Path, b: Path) -> None:
    a.write_text(text(1, 5000))
    b.write_text(text(2, 9000) + "\n" + text(1, 500))


def blank(a: Path, b: Path) -> None:
    a.write_text(" " * 5000)
    b.write_text(" " * 5000 + text(1, 100))


def missing(a: Path, b: Path) -> None:
    a.write_text("x")


def pictures(a: Path, b: Path, shift: int) -> None:
    for folder, start in ((a, 0), (b, shift)):
        folder.mkdir()
        (folder / "labels.csv").write_text("file,label\n")
        for number in range(start, start + 8):
            (folder / f"{number - start}.png").write_bytes(bytes([number]) * (100 + number))


@pytest.mark.parametrize(
    ("build", "shared"),
    [
        *[(build, True) for build in (superset, part, mostly, link, lambda a, b: pictures(a, b, 4))],
        *[(build, False) for build in (other, little, blank, missing, lambda a, b: pictures(a, b, 5))],
    ],
)
def test_data_in_common(tmp_path: Path, build: Callable[[Path, Path], None], shared: bool) -> None:
    build(tmp_path / "a", tmp_path / "b")
    assert is_mostly_shared(tmp_path / "a", tmp_path / "b") is shared


@pytest.mark.parametrize(
    ("calibration", "evaluation", "model", "expected"),
    [
        ("a.txt", "a.txt", "x/y", ["are the same for the most part"]),
        ("a.txt", "b.txt", "x/y", []),
        ("demo:train", "demo:valid", "demo", []),
        ("demo:train", "demo:train", "demo", ["are the same for the most part"]),
        ("demo:train", "demo:valid", None, []),
        ("demo:train", "demo:valid", "/home/me/mine", ["calibration.data and evaluation.data: the stories .* of mine"]),
        ("a.txt", "demo:valid", "x/y", ["^evaluation.data: the stories of the demo model tell little of y"]),
        (None, "nowhere.txt", "x/y", []),
    ],
)
def test_what_is_said(
    tmp_path: Path, calibration: str | None, evaluation: str, model: str | None, expected: list[str]
) -> None:
    other(tmp_path / "a.txt", tmp_path / "b.txt")
    lines = [f"calibration: {{data: {calibration}}}"] if calibration else []
    content = "\n".join(["version: 1", "name: x", *lines, f"evaluation: {{data: {evaluation}}}", "passes: []"])
    recipe = parse_recipe(content, source="r.yaml", options={}, folder=tmp_path)
    found = doubts(recipe, model, calibrated=True)
    assert len(found) == len(expected)
    for sentence, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, sentence)
    assert not [s for s in doubts(recipe, model, calibrated=False) if "the same" in s]
