"""What selections of image tokens cost the answers of a small LLaVA model, trained by `make demo-llava`.

The three graphs run in plain ONNX Runtime sessions. For each pass one row: `accuracy` of whole answers, by kind of
question too, over the tokens of the right answers `kl` from the model with all tokens (nats) and `top1` agreement, and
the share of questions with the same `greedy` answer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from compressor.data.kinds import AnswerData, Batches
from compressor.data.questions import load_answers
from compressor.data.reading import DataRequest
from compressor.errors import CompressorError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.answers import SeeingModel, measure_answers
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.folder import ModelFolder, open_model
from compressor.model.parts import image_token_of
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.tokens.llm_tokens import LlmTokens
from tests.bench.harness import Context, Row, drop, write_json

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
    lines = ["", *(line for line in PASSES if re.search(context.only or "", line))]
    work = context.folder(SUITE)
    drop(work / "models")
    measuring = Measuring(folder / "model", folder / "questions.jsonl", work / "models")
    rows = [{"model": _NAME, **_row(context, measuring, line)} for line in lines]
    drop(work / "models")
    settings = [{"name": _NAME, "trained": json.loads((folder / "model" / "training.json").read_text())}]
    return {"settings": settings, "rows": rows, "skipped": [], "planned": [[_NAME, line] for line in ("", *PASSES)]}


def _row(context: Context, measuring: Measuring, line: str) -> Mapping[str, Any]:
    """Return the figures of a pass, as a run that was stopped has left them where it is to go on."""
    kept = context.folder(SUITE) / f"{re.sub('[^a-z0-9.]+', '-', line) or 'dense'}.json"
    if context.resume and kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    try:
        row = measuring.row(line)
    except CompressorError as error:
        return {"pass": line, "error": error.message}
    write_json(kept, row)
    return row


class Measuring:
    """Measures selections on one model and its questions."""

    def __init__(self, model: Path, file: Path, work: Path) -> None:
        """Export the model with all tokens into the folder `work`."""
        token = image_token_of(model)
        assert token is not None, "of a LLaVA model"
        self._model, self._work = model, work
        vision, language = open_vision(model, work / "dense"), open_language(model, work / "language")
        self.dense = SeeingModel(vision, language, token)
        self.questions = read_questions(self.dense, file)

    def row(self, line: str) -> dict[str, Any]:
        """Return the figures after the pass in `line`; with all tokens where it is empty."""
        if not line:
            return {"pass": line, **figures(self.dense, self.dense, self.questions)}
        ((method, options),) = yaml.safe_load(line).items()
        place = self._work / "reduced"
        drop(place)
        if LlmTokens in (methods()[method], getattr(methods()[method], "of", None)):
            ours = replace(self.dense, language=open_language(self._model, place, method, **options))
        else:
            ours = replace(self.dense, vision=open_vision(self._model, place, method, **options))
        return {"pass": line, **figures(ours, self.dense, self.questions)}
