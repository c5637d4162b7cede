"""Answers to questions about images: what a language model that reads image features in its prompt is worth.

An answer is right if every token of the right one, and its end, is the most likely one behind those before it: then
greedy decoding gives it too. KL divergence and agreement with the dense model are means over the tokens of the right
answers; `greedy` is the share of questions to which greedy decoding gives the same answer as the dense model's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.data.kinds import AnswerData, Ids, Inputs, Question
from compressor.errors import DataError
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.runner import Array, Past, Runner, question_width, read_config
from compressor.measure.scores import Quality, Scores, quality_of
from compressor.measure.statistics import Ratio, Statistic
from compressor.measure.torch_runner import TorchRunner


@dataclass(frozen=True)
class SeeingModel:
    """A language model that reads image features in its prompt, of two parts.

    Attributes:
        vision: gives the features of images [images, features, width].
        language: embeds tokens, and goes from embeddings to logits.
        image_token: stands for an image in a prompt; its features take that place.
    """

    vision: Runner
    language: OnnxRunner | TorchRunner
    image_token: int

    def features(self, images: Inputs) -> Array:
        """Return the features [images, features, width] of images [images, channels, height, width]."""
        return self.vision.forward(images)

    def features_of(self, images: Inputs) -> Callable[[int, Ids], Array]:
        """Return what gives the features [features, width] of one of some images, asked for by a prompt [T]."""
        if not question_width(read_config(self.vision.folder)):
            rows: list[Array] = [*self.features(images)]
            return lambda row, _: rows[row]

        def seen_for(row: int, prompt: Ids) -> Array:
            words = self.language.embed(prompt[None, prompt != self.image_token])
            image = {name: array[row : row + 1] for name, array in images.items()}
            return np.asarray(self.features({**image, "text_features": words})[0])

        return seen_for

    def inputs(self, features: Array, ids: Ids) -> Inputs:
        """Return what the language model reads for the features of one image [features, width] and tokens [T]."""
        place = int(np.flatnonzero(ids == self.image_token)[0])  # an answer may hold that token as well
        before, behind = ids[None, :place], ids[None, place + 1 :]
        places = np.full((1, len(features)), self.image_token)
        parts = [self.language.embed(before), features[None], self.language.embed(behind)]
        return {
            "input_ids": np.concatenate([before, places, behind], axis=1),
            "inputs_embeds": np.concatenate(parts, axis=1),
        }

    def answered(self, features: Array, prompt: Ids, answer: Ids) -> Array:
        """Return the logits [answer, vocabulary] from which each token of an answer is predicted.

        The prompt is one call, as a user makes it: which image tokens go inside the language model, if any do, must not
        depend on the answer.
        """
        asked = self.inputs(features, prompt)
        length = asked["input_ids"].shape[1]
        mask = np.ones((1, length + len(answer) - 1), np.int64)
        logits, past = self.language.extend({**asked, "attention_mask": mask[:, :length]})
        if len(answer) == 1:
            return np.asarray(logits[0, -1:])
        rest, _ = self.language.extend({"input_ids": answer[None, :-1], "attention_mask": mask}, past)
        return np.concatenate([logits[0, -1:], rest[0]])

    def generate(self, features: Array, ids: Ids, count: int) -> Ids:
        """Return the greedy continuation [count] of a prompt with an image."""
        step, made = self.inputs(features, ids), list[int]()
        past: Past | None = None
        length = step["input_ids"].shape[1]
        for number in range(count):
            mask = np.ones((1, length + number), np.int64)
            logits, past = self.language.extend({**step, "attention_mask": mask}, past)
            made.append(int(logits[0, -1].argmax()))
            step = {"input_ids": np.asarray([[made[-1]]], dtype=np.int64)}
        return np.asarray(made, dtype=np.int64)


@dataclass(frozen=True)
class Answered:
    """What two models make of questions about images.

    Attributes:
        quality: `accuracy`, and beside a dense model `kl`, `top1` and `greedy`.
        kinds: kind of question -> `questions`, and the accuracy of `ours` and of `dense`.
        samples: tokens of some prompts, of the dense model's greedy answers to them, and of ours.
    """

    quality: Quality
    kinds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    samples: Sequence[tuple[list[int], list[int], list[int]]] = ()


def measure_answers(ours: SeeingModel, dense: SeeingModel | None, data: AnswerData, shown: int = 0) -> Answered:
    """Measure the answers of a model, and how far they are from those of the dense one.

    Args:
        ours: the model.
        dense: the dense one; None leaves out what compares with it.
        data: the questions.
        shown: how many greedy answers to return beside the figures, to questions that are spread evenly over the data.

    Raises:
        DataError: a question is longer than the model's positions.
    """
    places = np.linspace(0, len(data), min(shown, len(data)), endpoint=False).astype(int)
    tally = _Tally(dense is not None, max(len(asked.answer) for asked in data.questions), set(places.tolist()))
    for asked, mine, theirs in _seen(ours, dense, data):
        for model, features in ((ours, mine), (dense, theirs)):
            if model is not None and features is not None:
                _room(model, features, asked)
        _add(tally, asked, (ours, mine), (dense, theirs) if dense is not None and theirs is not None else None)
    return tally.result(data)


def _seen(
    ours: SeeingModel, dense: SeeingModel | None, data: AnswerData
) -> Iterator[tuple[Question, Array, Array | None]]:
    """Yield every question with the features of its image [features, width], ours and the dense model's."""
    questions, first = deque(data.questions), 0
    for batch in data.images:
        mine = ours.features_of(batch)
        theirs = dense.features_of(batch) if dense is not None else None
        count = len(next(iter(batch.values())))
        while questions and questions[0].image < first + count:
            asked = questions.popleft()
            row, prompt = asked.image - first, np.asarray(asked.prompt)
            yield asked, mine(row, prompt), theirs(row, prompt) if theirs is not None else None
        first += count


def _room(model: SeeingModel, features: Array, asked: Question) -> int:
    """Return how many tokens an answer may have.

    Raises:
        DataError: the right one has more.
    """
    most = int(read_config(model.language.folder).get("max_position_embeddings") or 1 << 20)
    room = most - (len(features) + len(asked.prompt) - 1)
    if len(asked.answer) > room:
        raise DataError(
            f"a question and its answer take {most - room + len(asked.answer)} tokens, {len(features)} of them for its"
            f" image; the model has {most} positions",
            hint="Leave out such questions, or ask shorter ones.",
        )
    return room


class _Tally:
    """Figures of all questions."""

    def __init__(self, compares: bool, longest: int, shown: set[int]) -> None:
        self.scores, self.longest, self.compares, self.shown = Scores(), longest, compares, shown
        self.samples: list[tuple[list[int], list[int], list[int]]] = []
        self.right: list[bool] = []
        self.right_dense: list[bool] = []
        self.same: list[bool] = []
        self.first: Array | None = None
        self.varies = False

    def result(self, data: AnswerData) -> Answered:
        ours: dict[str, Statistic] = {"accuracy": _share(self.right)}
        dense: dict[str, Statistic] = {}
        if self.compares:
            ours |= {"top1": self.scores.ratio("agree"), "kl": self.scores.ratio("kl"), "greedy": _share(self.same)}
            dense = {"accuracy": _share(self.right_dense)}
        quality = quality_of(
            ours,
            dense,
            finite=self.scores.finite,
            varies=self.varies or len(data) == 1,
            entropy=self.scores.entropy,
            samples=len(data),
        )
        return Answered(quality, self._kinds(data.questions), self.samples)

    def _kinds(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for kind in sorted({asked.kind for asked in questions if asked.kind}):
            rows = [place for place, asked in enumerate(questions) if asked.kind == kind]
            sides = {"ours": self.right, **({"dense": self.right_dense} if self.compares else {})}
            shares = {side: float(np.mean([right[row] for row in rows])) for side, right in sides.items()}
            found[kind] = {"questions": len(rows), **shares}
        return found


def _share(hits: Sequence[bool]) -> Ratio:
    return Ratio(np.asarray(hits, dtype=np.float64), np.ones(len(hits)))


def _add(
    tally: _Tally, asked: Question, ours: tuple[SeeingModel, Array], dense: tuple[SeeingModel, Array] | None
) -> None:
    """Add what the models, each with the features of the image, make of a question."""
    answer = np.asarray(asked.answer, dtype=np.int64)
    mine = _answer_logits(*ours, asked.prompt, asked.answer)
    theirs = _answer_logits(*dense, asked.prompt, asked.answer) if dense is not None else None
    tally.scores.add(mine, answer, theirs, together=True)
    tally.first = mine[0] if tally.first is None else tally.first
    tally.varies |= not np.array_equal(tally.first, mine[0])
    right = bool((mine.argmax(-1) == answer).all())
    tally.right.append(right)
    if dense is None or theirs is None:
        return
    if len(tally.right) - 1 in tally.shown:
        prompt = np.asarray(asked.prompt, dtype=np.int64)
        count = min(tally.longest, *(_room(*side, asked) for side in (ours, dense)))
        made = [side.generate(features, prompt, count).tolist() for side, features in (dense, ours)]
        tally.samples.append(([*asked.prompt], made[0], made[1]))
    right_dense = bool((theirs.argmax(-1) == answer).all())
    tally.right_dense.append(right_dense)
    tally.same.append(right if right_dense else _same(tally.longest, asked, ours, dense))


def _answer_logits(model: SeeingModel, features: Array, prompt: Sequence[int], answer: Sequence[int]) -> Array:
    """Return the logits [answer, vocabulary] from which each token of an answer is predicted."""
    return model.answered(features, np.asarray(prompt, dtype=np.int64), np.asarray(answer, dtype=np.int64))


def _same(longest: int, asked: Question, ours: tuple[SeeingModel, Array], dense: tuple[SeeingModel, Array]) -> bool:
    """Tell whether greedy decoding gives the same, up to the end or to as many tokens as the longest answer has."""
    model, features = dense
    count = min(longest, _room(model, features, asked), _room(*ours, asked))
    made = model.generate(features, np.asarray(asked.prompt, dtype=np.int64), count)
    ends = np.flatnonzero(made == asked.answer[-1])
    made = made[: ends[0] + 1] if len(ends) else made
    found = _answer_logits(*ours, asked.prompt, made.tolist())
    return bool((found.argmax(-1) == made).all())
