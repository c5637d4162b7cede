"""Answers to questions about images: what is right, how far two models are apart, and greedy decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data.kinds import AnswerData, Batches, Question
from compressor.errors import DataError
from compressor.measure.answers import SeeingModel, measure_answers

VOCABULARY, WIDTH, IMAGE, END = 12, 6, 11, 0
QUESTIONS = (
    Question(0, "colour", (1, IMAGE, 3), (4, END)),
    Question(0, "digit", (1, IMAGE, 5, 6), (7, END)),
    Question(1, "colour", (IMAGE, 3), (8, 9, END)),
)


class Vision:
    """Gives three features for an image, from its mean."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def forward(self, inputs: dict[str, Any]) -> Any:
        means = inputs["pixel_values"].mean(axis=(1, 2, 3))
        return np.sin(means[:, None, None] + np.arange(3 * WIDTH).reshape(1, 3, WIDTH)).astype(np.float32)


class Language:
    """Predicts from the sum of all embeddings so far."""

    def __init__(self, folder: Path, seed: int, positions: int = 64) -> None:
        rng = np.random.default_rng(seed)
        self.folder, self.table = folder, rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
        self.head = rng.standard_normal((WIDTH, VOCABULARY)).astype(np.float32)
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))

    def embed(self, ids: Any) -> Any:
        return self.table[ids]

    def forward(self, inputs: dict[str, Any]) -> Any:
        return inputs["inputs_embeds"].cumsum(axis=1) @ self.head

    def extend(self, inputs: dict[str, Any], past: Any = None) -> tuple[Any, Any]:
        embeds = inputs.get("inputs_embeds")
        embeds = self.embed(inputs["input_ids"]) if embeds is None else embeds
        assert inputs["attention_mask"].shape[1] == embeds.shape[1] + (0 if past is None else past[1])
        total = embeds.cumsum(axis=1) + (0 if past is None else past[0])
        return total @ self.head, (total[:, -1:], inputs["attention_mask"].shape[1])


def model(folder: Path, seed: int, **options: Any) -> SeeingModel:
    folder.mkdir()
    return SeeingModel(Vision(folder), Language(folder, seed, **options), IMAGE)  # type: ignore[arg-type]


def questions(*asked: Question) -> AnswerData:
    pixels = np.random.default_rng(1).standard_normal((2, 3, 4, 4)).astype(np.float32)
    return AnswerData(Batches(lambda: ({"pixel_values": p[None]} for p in pixels), 2), asked, IMAGE)


def predicted(side: SeeingModel, data: AnswerData, asked: Question, answer: tuple[int, ...]) -> Any:
    """Return log-probabilities [answer, vocabulary], computed from the embeddings one by one."""
    language: Any = side.language
    image = side.features(list(data.images)[asked.image])[0]
    vectors: list[Any] = []
    for token in (*asked.prompt, *answer):
        vectors += list(image) if token == IMAGE else [language.table[token]]
    rows = []
    for place in range(len(answer)):
        scores = (sum(vectors[: len(vectors) - len(answer) + place]) @ language.head).astype(np.float64)
        rows.append(scores - np.log(np.exp(scores).sum()))
    return np.stack(rows)


def greedy(side: SeeingModel, data: AnswerData, asked: Question, most: int) -> list[int]:
    made: list[int] = []
    while len(made) < most and (not made or made[-1] != END):
        made.append(int(predicted(side, data, asked, (*made, END))[-1].argmax()))
    return made


def test_figures_are_those_of_an_independent_computation(tmp_path: Path) -> None:
    ours, dense, data = model(tmp_path / "ours", 3), model(tmp_path / "dense", 4), questions(*QUESTIONS)
    # One question whose right answer is what ours gives, so that not all answers are wrong.
    first = QUESTIONS[0]
    data = questions(Question(0, "colour", first.prompt, (*greedy(ours, data, first, 3),)), *QUESTIONS[1:])
    found = measure_answers(ours, dense, data)
    mine, theirs = ([predicted(side, data, a, a.answer) for a in data.questions] for side in (ours, dense))
    right = [bool((p.argmax(-1) == a.answer).all()) for p, a in zip(mine, data.questions, strict=True)]
    p, q = np.concatenate(mine), np.concatenate(theirs)
    longest = max(len(a.answer) for a in data.questions)
    same = [greedy(ours, data, a, longest) == greedy(dense, data, a, longest) for a in data.questions]
    wanted = {
        "accuracy": np.mean(right),
        "top1": np.mean(p.argmax(-1) == q.argmax(-1)),
        "kl": np.mean((np.exp(q) * (q - p)).sum(-1)),
        "greedy": np.mean(same),
    }
    assert any(right) and not all(right)
    assert found.quality.ours == pytest.approx(wanted, abs=1e-5) and found.quality.samples == 3
    assert found.kinds["colour"] == {"questions": 2, "ours": np.mean([right[0], right[2]]), "dense": 0.0}
    alone = measure_answers(ours, None, data)
    assert set(alone.quality.ours) == {"accuracy"} and "dense" not in alone.kinds["digit"]


def test_a_model_gives_its_own_answers(tmp_path: Path) -> None:
    side, data = model(tmp_path / "model", 5), questions(*QUESTIONS)
    found = measure_answers(side, side, data).quality.ours
    assert found["greedy"] == found["top1"] == 1.0 and found["kl"] == 0.0
    features = side.features(list(data.images)[0])[0]
    made = side.generate(features, np.asarray(QUESTIONS[1].prompt), 4)
    longest = greedy(side, data, QUESTIONS[1], 4)
    assert made.tolist()[: len(longest)] == longest


def test_a_question_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    side = model(tmp_path / "model", 5, positions=7)
    measure_answers(side, side, questions(QUESTIONS[0]))
    with pytest.raises(DataError, match="take 8 tokens, 3 of them for its image; the model has 7 positions"):
        measure_answers(side, side, questions(QUESTIONS[1]))
