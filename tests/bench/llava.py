"""What selections of image tokens cost the answers of a LLaVA model: `python -m tests.bench.llava MODEL QUESTIONS`.

MODEL is a folder of `make demo-llava`, QUESTIONS its `questions.jsonl` beside `images/`. The three graphs run in plain
ONNX Runtime sessions. For each method and number of tokens one line of JSON: `accuracy` of whole answers, by kind of
question too, and over the tokens of the right answers `kl` from the model with all tokens (nats) and `top1` agreement.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.data.kinds import Batches, Ids, Inputs
from compressor.data.preprocessors import load_processor, load_tokenizer
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.runner import read_config
from compressor.measure.scores import log_softmax
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.tokens.llm_tokens import LlmTokens

METHODS = ("fastervlm", "random-visual-tokens", "divprune", "visionzip", "fastv", "random-llm-tokens")
SHARES = (0.5, 0.25, 0.11)
PROMPT = "<image> {question} answer :"


@dataclass(frozen=True)
class Joined:
    """A LLaVA model of three graphs.

    Attributes:
        vision: gives image features.
        language: embeds tokens, and goes from embeddings to logits.
        image_token: whose place in a prompt the features of an image take.
    """

    vision: OnnxRunner
    language: OnnxRunner
    image_token: int

    def inputs(self, pixels: NDArray[Any], ids: Ids) -> Inputs:
        """Return what the decoder reads for an image [1, channels, height, width] and tokens [1, T], one of it."""
        features = self.vision.forward({"pixel_values": pixels})
        (place,) = np.flatnonzero(ids[0] == self.image_token)
        before, behind = ids[:, :place], ids[:, place + 1 :]
        places = np.full((1, features.shape[1]), self.image_token)
        parts = [self.language.embed(before), features, self.language.embed(behind)]
        return {
            "input_ids": np.concatenate([before, places, behind], axis=1),
            "inputs_embeds": np.concatenate(parts, axis=1),
        }

    def of_answer(self, pixels: NDArray[Any], ids: Ids, answer: int) -> NDArray[np.float32]:
        """Return the logits [answer, vocabulary] of the last `answer` tokens of a text, whose prompt is one call."""
        prompt = self.inputs(pixels, ids[:, :-answer])
        mask = np.ones((1, prompt["input_ids"].shape[1] + answer - 1), np.int64)
        logits, past = self.language.extend({**prompt, "attention_mask": mask[:, : mask.shape[1] - answer + 1]})
        if answer == 1:
            return logits[0, -1:]
        rest, _ = self.language.extend({"input_ids": ids[:, -answer:-1], "attention_mask": mask}, past)
        return np.concatenate([logits[0, -1:], rest[0]])

    def logits(self, pixels: NDArray[Any], ids: Ids) -> NDArray[np.float32]:
        """Return the logits [tokens, vocabulary] of all tokens."""
        return self.language.forward(self.inputs(pixels, ids))[0]

    def generate(self, pixels: NDArray[Any], ids: Ids, count: int) -> Ids:
        """Return the greedy continuation [1, count]."""
        step, past, made = self.inputs(pixels, ids), None, []
        length = step["input_ids"].shape[1]
        for number in range(count):
            mask = np.ones((1, length + number), np.int64)
            logits, past = self.language.extend({**step, "attention_mask": mask}, past)
            made.append(logits[:, -1].argmax(-1))
            step = {"input_ids": made[-1][:, None]}
        return np.stack(made, axis=1)


def open_vision(model: Path, work: Path, method: str | None = None, **options: Any) -> OnnxRunner:
    """Export the image part of a LLaVA model, after a pass that needs no data if one is named."""
    tower, graph = work / "tower", work / "graph"
    for folder in (tower, graph):
        folder.mkdir(parents=True)
    export_safetensors(open_model(model, part="vision"), tower)
    export_onnx(_after(open_model(tower), work, method, options), graph)
    return OnnxRunner(graph)


def open_language(model: Path, work: Path, method: str | None = None, **options: Any) -> OnnxRunner:
    """Export the language part of a LLaVA model as two graphs, after a pass that needs no data if one is named."""
    graph = work / "graph"
    graph.mkdir(parents=True)
    names = OnnxOptions(name="decoder_model_merged.onnx", embeddings="embed_tokens.onnx")
    export_onnx(_after(open_model(model, part="language"), work, method, options), graph, names)
    return OnnxRunner(graph)


def _after(part: ModelFolder, work: Path, method: str | None, options: Mapping[str, Any]) -> ModelFolder:
    """Return a part of a model after a pass that needs no data."""
    if method is None:
        return part
    known = methods()[method]
    setting = Setting(work=work / "pass", fingerprint="bench", cache_bytes=1 << 28)
    return apply_pass(known(known.Options(**options)), part, Batches(lambda: iter(()), 0), setting)[0]


@dataclass(frozen=True)
class Question:
    """A question about an image, as tokens [1, T] that end with the right answer of `answer` tokens."""

    kind: str
    pixels: NDArray[Any]
    ids: Ids
    answer: int


def read_questions(model: Path, file: Path) -> Iterator[Question]:
    """Yield the questions of a file, their images prepared by the model's own processor."""
    tokenizer, processor = load_tokenizer(model), load_processor(model)
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        image = Image.open(file.parent / "images" / entry["image"])
        pixels = processor(image, return_tensors="np")["pixel_values"]
        prompt = tokenizer(PROMPT.format(**entry))["input_ids"]
        answer = [*tokenizer(entry["answer"])["input_ids"], tokenizer.eos_token_id]
        yield Question(entry["kind"], pixels, np.asarray([[*prompt, *answer]]), len(answer))


def answers(model: Joined, questions: Sequence[Question]) -> list[NDArray[np.float64]]:
    """Return the log-probabilities [answer, vocabulary] of each token of the right answers."""
    return [
        log_softmax(model.of_answer(asked.pixels, asked.ids, asked.answer)).astype(np.float64) for asked in questions
    ]


def figures(
    ours: Sequence[NDArray[np.float64]], dense: Sequence[NDArray[np.float64]], questions: Sequence[Question]
) -> dict[str, Any]:
    """Return accuracy, overall and by kind, and agreement with the dense model over the tokens of right answers."""
    pairs = zip(ours, questions, strict=True)
    right = [bool((p.argmax(-1) == asked.ids[0, -asked.answer :]).all()) for p, asked in pairs]
    kinds: dict[str, list[bool]] = {}
    for asked, hit in zip(questions, right, strict=True):
        kinds.setdefault(asked.kind, []).append(hit)
    mine, theirs = np.concatenate(ours), np.concatenate(dense)
    return {
        "accuracy": float(np.mean(right)),
        "kinds": {kind: float(np.mean(hits)) for kind, hits in sorted(kinds.items())},
        "kl": float((np.exp(theirs) * (theirs - mine)).sum(-1).mean()),
        "top1": float((mine.argmax(-1) == theirs.argmax(-1)).mean()),
    }


def measured(model: Path, file: Path, work: Path, cases: Sequence[tuple[str, float]]) -> Iterator[Mapping[str, Any]]:
    """Yield the figures of the model with all tokens, then those of each method and share of the tokens.

    Methods inside the language model let tokens go behind its first layer.
    """
    questions = list(read_questions(model, file))
    language, token = open_language(model, work / "language"), int(read_config(model)["image_token_index"])
    vision = open_vision(model, work / "dense")
    dense = answers(Joined(vision, language, token), questions)
    yield {"method": "dense", "keep": 1.0, **figures(dense, dense, questions)}
    for method, keep in cases:
        place = work / f"{method}-{keep}"
        if LlmTokens in (methods()[method], getattr(methods()[method], "of", None)):
            joined = Joined(vision, open_language(model, place, method, keep=keep, layers=[1]), token)
        else:
            joined = Joined(open_vision(model, place, method, keep=keep), language, token)
        found = answers(joined, questions)
        yield {"method": method, "keep": keep, **figures(found, dense, questions)}


def main(arguments: list[str] | None = None) -> int:
    """Print a line of JSON for each case."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.llava", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llava-bench-") as work:
        cases = [(method, keep) for keep in SHARES for method in METHODS]
        for line in measured(given.model, given.questions, Path(work), cases):
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
