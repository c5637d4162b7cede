"""What selections of image tokens cost the answers of a small LLaVA model, trained by `make demo-llava`.

The three graphs run in plain ONNX Runtime sessions. For each pass one row: `accuracy` of whole answers, by kind of
question too, over the tokens of the right answers `kl` from the model with all tokens (nats) and `top1` agreement, and
the share of questions with the same `greedy` answer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from compressor.data.kinds import AnswerData, Batches
from compressor.data.questions import load_answers
from compressor.data.reading import DataRequest
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.answers import SeeingModel, measure_answers
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.folder import ModelFolder, open_model
from compressor.model.parts import image_token_of
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.tokens.llm_tokens import LlmTokens
from tests.bench.harness import Context, Row, drop

SUITE = "llava"
VARIABLE = "COMPRESSOR_BENCH_LLAVA"
_NAME = "small LLaVA"
_BEHIND = (
    *("fastervlm", "vtc-cls", "fopru", "hiprune", "flowcut", "visionzip", "divprune", "todre", "hired", "globalcom2"),
    *("holov", "correlation", "vflowopt", "recoverable", "prunesid", "mmtok", "random-visual-tokens"),
)
_EARLIER = {"hiprune": ", earlier: [2]"}
"""What a method needs beside a share: the image tower runs four blocks."""
_INSIDE = ("fastv", "feather", "transprune", "aim", "random-llm-tokens")
SHARES = (0.5, 0.25, 0.11)
PASSES = (
    *(f"{name}: {{keep: {keep}{_EARLIER.get(name, '')}}}" for keep in SHARES for name in _BEHIND),
    *(f"{name}: {{keep: {keep}, layers: [1]}}" for keep in SHARES for name in _INSIDE),
    *(
        "p-sigmoid: {layers: [1, 2], sigmoid: [10.0, 0.4]}",
        "zipvl: {layers: [1], mass: 0.9}",
        "todre-late: {layers: [2]}",
    ),
)
"""Selections behind the image encoder, and inside the language model, which has three layers."""
PROMPT = "<image> {question} answer :"


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


def read_questions(model: SeeingModel, file: Path) -> AnswerData:
    """Return the questions of a file as a model reads them."""
    request = DataRequest(str(file.resolve()), (), None, 0, 0, "evaluation", prompt=PROMPT)
    return load_answers(request, model.language.folder, model.vision.folder, model.image_token)


def figures(ours: SeeingModel, dense: SeeingModel, questions: AnswerData) -> dict[str, Any]:
    """Return accuracy, overall and by kind, and agreement with the dense model."""
    found = measure_answers(ours, dense, questions)
    return {**found.quality.ours, "kinds": {kind: entry["ours"] for kind, entry in found.kinds.items()}}


def run(context: Context) -> Row:
    """Measure every pass on the model and questions that `make demo-llava` has left in the folder of the variable."""
    folder = Path(os.environ.get(VARIABLE) or "absent")
    if not (folder / "questions.jsonl").is_file():
        reason = f"{VARIABLE} names no folder of `make demo-llava`"
        return {"settings": [], "rows": [], "skipped": [{"what": _NAME, "reason": reason}], "planned": []}
    lines = [line for line in PASSES if re.search(context.only or "", line)]
    work = context.folder(SUITE, "models")
    drop(work)
    rows = [{"model": _NAME, **row} for row in measured(folder / "model", folder / "questions.jsonl", work, lines)]
    drop(work)
    settings = [{"name": _NAME, "trained": json.loads((folder / "model" / "training.json").read_text())}]
    return {"settings": settings, "rows": rows, "skipped": [], "planned": [[_NAME, line] for line in ("", *PASSES)]}


def measured(model: Path, file: Path, work: Path, lines: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the figures of the model with all tokens, then those after each pass in `lines`."""
    language, token = open_language(model, work / "language"), image_token_of(model)
    assert token is not None, "of a LLaVA model"
    dense = SeeingModel(open_vision(model, work / "dense"), language, token)
    questions = read_questions(dense, file)
    yield {"pass": "", **figures(dense, dense, questions)}
    for number, line in enumerate(lines):
        ((method, options),) = yaml.safe_load(line).items()
        place = work / str(number)
        if LlmTokens in (methods()[method], getattr(methods()[method], "of", None)):
            ours = SeeingModel(dense.vision, open_language(model, place, method, **options), token)
        else:
            ours = SeeingModel(open_vision(model, place, method, **options), language, token)
        yield {"pass": line, **figures(ours, dense, questions)}
        drop(place)
