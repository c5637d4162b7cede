"""Long and odd texts: read and tokenised no further than is needed, with the windows that reading all would give."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data import corpus, windows
from compressor.data.corpus import Corpus, cut
from compressor.data.texts import DOCUMENT_END
from compressor.data.windows import Windows
from compressor.errors import DataError

KEY = "evaluation.data"


class Words:
    """A tokenizer of one token per word, after an opening token; counts what it is given."""

    def __init__(self) -> None:
        self.given = 0
        self.longest = 0

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        self.given += sum(map(len, texts))
        self.longest = max([self.longest, *map(len, texts)])
        opening = [0] if add_special_tokens else []
        ids = [[*opening, *(int(word.strip("w") or 1) for word in part.split())] for part in texts]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is large be small."""
    monkeypatch.setattr(corpus, "LARGE", 400_000)
    monkeypatch.setattr(windows, "PIECE", 20_000)
    monkeypatch.setattr(windows, "_DRAWN_CHARACTERS", 160_000)


def text_of(count: int) -> str:
    return " ".join(f"w{i}" for i in range(1, count + 1))


def made(file: Path, text: str, purpose: str, **options: Any) -> tuple[np.ndarray, Words]:
    file.write_text(text)
    words = Words()
    maker = Windows(Corpus(file, f"{purpose}.data"), words, **{"length": 16, "samples": 4, **options})
    return (maker.drawn(0) if purpose == "calibration" else maker.first()), words


def test_evaluation_reads_the_start_alone(tmp_path: Path) -> None:
    found, words = made(tmp_path / "x.txt", text_of(200_000), "evaluation")
    assert found.ravel().tolist() == list(range(1, 65))
    assert words.given <= 1 << 16


def test_all_windows_are_made_in_pieces(tmp_path: Path) -> None:
    found, words = made(tmp_path / "x.txt", text_of(30_000), "evaluation", samples=None)
    assert found.ravel().tolist() == list(range(1, 30_000 // 16 * 16 + 1))
    assert words.longest <= 20_000


@pytest.mark.parametrize(("ending", "documents"), [("txt", False), ("txt", True), ("jsonl", True)])
@pytest.mark.parametrize("count", [10_000, 40_000, 100_000])
def test_calibration_is_drawn_and_little_is_tokenised(tmp_path: Path, count: int, documents: bool, ending: str) -> None:
    text = text_of(count)
    if documents:
        text = text.replace("00 w", f"00{DOCUMENT_END}w")
    if ending == "jsonl":
        text = "\n".join(json.dumps({"text": part}) for part in text.split(DOCUMENT_END)) + "\n"
    file = tmp_path / f"x.{ending}"
    found, words = made(file, text, "calibration")
    assert found.shape == (4, 16)
    assert len({row[1] for row in found.tolist()}) == 4
    assert all(b - a == 1 for row in found.tolist() for a, b in zip(row[1:], row[2:], strict=False) if a and b)
    assert words.given < 200_000


def test_windows_of_a_short_text_are_those_of_all_its_tokens(tmp_path: Path) -> None:
    found, _ = made(tmp_path / "x.txt", text_of(100), "calibration")
    rng = random.Random(0)
    starts = [rng.randrange(100 - 16 + 1) for _ in range(4)]
    assert found.tolist() == [list(range(start + 1, start + 17)) for start in starts]


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
@pytest.mark.parametrize(
    "text", ["", DOCUMENT_END * 1000, " \n" * 1000, DOCUMENT_END * 20_000, " " * 500_000, "w" * 300_000]
)
def test_a_text_without_words_is_too_short(tmp_path: Path, text: str, purpose: str) -> None:
    with pytest.raises(DataError, match=rf"^{purpose}.data: x.txt has .* too little for 4 samples") as caught:
        made(tmp_path / "x.txt", text, purpose)
    assert "at most 0" not in str(caught.value)


def test_pieces_end_between_documents_or_words() -> None:
    def whole(parts: Iterator[str]) -> list[str]:
        return list(parts)

    assert whole(cut("aa bb cc dd", 7)) == ["aa bb", " cc dd"]
    assert whole(cut(f"a b{DOCUMENT_END}c d e f g", 20)) == [f"a b{DOCUMENT_END}", "c d e f g"]
    assert whole(cut("abcdefgh", 3)) == ["abc", "def", "gh"]
    assert whole(cut(["ab", "cd", "ef"], 100)) == ["abcdef"]
    assert whole(cut("", 3)) == []
