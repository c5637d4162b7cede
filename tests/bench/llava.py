"""What selections of image tokens cost the answers of a LLaVA model: `python -m tests.bench.llava MODEL QUESTIONS`.

MODEL is a folder of `make demo-llava`, QUESTIONS its `questions.jsonl` beside `images/`. The three graphs run in plain
ONNX Runtime sessions. For each method and number of tokens one line of JSON: `accuracy` of whole answers, by kind of
question too, over the tokens of the right answers `kl` from the model with all tokens (nats) and `top1` agreement, and
the share of questions with the same `greedy` answer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.data.kinds import AnswerData, Batches
from compressor.data.questions import load_answers
from compressor.data.reading import DataRequest
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.answers import SeeingModel, measure_answers
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.folder import open_model
from compressor.model.parts import image_token_of
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass

METHODS = (
    *("fastervlm", "random-visual-tokens", "divprune", "visionzip", "fopru", "vtc-cls", "hiprune", "flowcut"),
    *("hired", "globalcom2", "holov", "correlation", "todre", "vflowopt", "recoverable"),
)
SHARES = (0.5, 0.25, 0.11)
PROMPT = "<image> {question} answer :"


def open_vision(model: Path, work: Path, method: str | None = None, **options: Any) -> OnnxRunner:
    """Export the image part of a LLaVA model, after a pass that needs no data if one is named."""
    tower, graph = work / "tower", work / "graph"
    for folder in (tower, graph):
        folder.mkdir(parents=True)
    export_safetensors(open_model(model, part="vision"), tower)
    part = open_model(tower)
    if method is not None:
        known = methods()[method]
        setting = Setting(work=work / "pass", fingerprint="bench", cache_bytes=1 << 28)
        part, _ = apply_pass(known(known.Options(**options)), part, Batches(lambda: iter(()), 0), setting)
    export_onnx(part, graph)
    return OnnxRunner(graph)


def open_language(model: Path, work: Path) -> OnnxRunner:
    """Export the language part of a LLaVA model as two graphs."""
    work.mkdir(parents=True)
    names = OnnxOptions(name="decoder_model_merged.onnx", embeddings="embed_tokens.onnx")
    export_onnx(open_model(model, part="language"), work, names)
    return OnnxRunner(work)


def read_questions(model: SeeingModel, file: Path) -> AnswerData:
    """Return the questions of a file as a model reads them."""
    request = DataRequest(str(file.resolve()), (), None, 0, 0, "evaluation", prompt=PROMPT)
    return load_answers(request, model.language.folder, model.vision.folder, model.image_token)


def figures(ours: SeeingModel, dense: SeeingModel, questions: AnswerData) -> dict[str, Any]:
    """Return accuracy, overall and by kind, and agreement with the dense model."""
    found = measure_answers(ours, dense, questions)
    return {**found.quality.ours, "kinds": {kind: entry["ours"] for kind, entry in found.kinds.items()}}


def measured(model: Path, file: Path, work: Path, cases: Sequence[tuple[str, float]]) -> Iterator[Mapping[str, Any]]:
    """Yield the figures of the model with all tokens, then those of each method and share of the tokens."""
    language, token = open_language(model, work / "language"), image_token_of(model)
    assert token is not None, "of a LLaVA model"
    dense = SeeingModel(open_vision(model, work / "dense"), language, token)
    questions = read_questions(dense, file)
    yield {"method": "dense", "keep": 1.0, **figures(dense, dense, questions)}
    for method, keep in cases:
        vision = open_vision(model, work / f"{method}-{keep}", method, keep=keep)
        yield {"method": method, "keep": keep, **figures(SeeingModel(vision, language, token), dense, questions)}


def main(arguments: list[str] | None = None) -> int:
    """Print a line of JSON for each case."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.llava", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--only", default="", help="methods whose names match a regular expression")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llava-bench-") as work:
        cases = [(method, keep) for keep in SHARES for method in METHODS if re.search(given.only, method)]
        for line in measured(given.model, given.questions, Path(work), cases):
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
