"""SmolLM2-135M-Instruct, a trained model of real size: quality, the cost of a pass, and other programs beside it.

Goals P1 to P3. The model lies in the folder that `$COMPRESSOR_REAL_MODELS` names. Its weights lie on a grid of 4 bits
already, so what rounding to 4 bits loses looks too small.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from tests.bench import quality, quantize
from tests.bench.harness import Context, Row
from tests.bench.peers import LLMCOMPRESSOR
from tests.bench.quality import Subject
from tests.bench.quantize import Peer

SUITE = "real"
VARIABLE = "COMPRESSOR_REAL_MODELS"
MODEL = "SmolLM2-135M-Instruct"
INT4 = "gptq: {bits: 4, group_size: 32, symmetric: true}"
WHOLE_INT4 = "gptq: {bits: 4, group_size: 32, symmetric: true, embedding: 4, head: 4}"
"""With the head, which onnxruntime-genai's builder puts in 4 bits too: a fifth of the parameters."""
PASSES = (
    "width: {sparsity: 0.2}",
    "width: {sparsity: 0.3}",
    "slicegpt: {reduction: 0.2}",
    INT4,
    WHOLE_INT4,
    f"width: {{sparsity: 0.2}} + {INT4}",
)
PEER = Peer(
    "llm-compressor GPTQ, groups of 32, symmetric, in PyTorch",
    "llmcompressor_gptq",
    {"group": 32, "symmetric": True},
    timed=False,
)
_PROMPT, _TOKENS = 512, 64


def run(context: Context) -> Row:
    """Run every pass on the model, with one dense forward pass, llm-compressor and genai's own graph beside."""
    try:
        subject = _subject(context)
    except FileNotFoundError as error:
        return {"settings": [], "rows": [], "skipped": [{"what": MODEL, "reason": str(error)}], "planned": []}
    skipped: list[Row] = []
    wanted = [what for what in (*PASSES, PEER.title) if re.search(context.only or "", f"{MODEL}: {what}")]
    lines = tuple(what for what in wanted if what in PASSES)
    forward = context.step(SUITE, "forward", "forward", _calibration(subject) | {"model": str(subject.model)})
    rows = [_over(row, forward) for row in quality.measure(context, replace(subject, passes=lines), SUITE)]
    if PEER.title in wanted and os.environ.get(LLMCOMPRESSOR):
        rows.append(_over(quantize.measure_peer(context, subject, PEER, SUITE), forward))
    elif PEER.title in wanted:
        skipped.append({"what": PEER.title, "reason": f"{LLMCOMPRESSOR} names no interpreter that has it"})
    names = ("name", "samples", "held_out", "length", "timed_length")
    return {
        "timed": context.timed,
        "settings": [{key: getattr(subject, key) for key in names}],
        "rows": rows,
        "forward": forward,
        "genai": _genai(context, subject, lines.index(WHOLE_INT4)) if context.timed and WHOLE_INT4 in lines else None,
        "skipped": skipped,
        "planned": [[subject.name, what] for what in (*PASSES, PEER.title)],
    }


def _subject(context: Context) -> Subject:
    """Return the model with WikiText-2.

    Raises:
        FileNotFoundError: the model or the data is not here.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise FileNotFoundError(f"{VARIABLE} names no folder of models")
    model = Path(folder) / MODEL
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{MODEL} is not in the folder that {VARIABLE} names")
    small = quality.wikitext(context)
    samples, windows = (4, 2) if context.quick else (32, 24)
    return Subject(MODEL, model.resolve(), small.calibration, small.evaluation, samples, windows, 512, PASSES, 512)


def _calibration(subject: Subject) -> Row:
    return {"data": str(subject.calibration), "samples": subject.samples, "length": subject.length}


def _over(row: Row, forward: Row) -> Row:
    """Return a row with the CPU seconds of its pass over those of a dense forward pass of the same tokens."""
    spent = row.get("cpu_seconds") or row.get("compression", {}).get("cpu_seconds")
    if spent is None or "error" in forward:
        return row
    return {**row, "forwards": spent / forward["cpu_seconds"]}


def _genai(context: Context, subject: Subject, number: int) -> Row:
    """Decode in onnxruntime-genai with our 4-bit artifact and with the graph of its own builder."""
    out = context.folder(SUITE, subject.name) / "builder"
    built = context.step(SUITE, "builder", "genai_int4", {"model": str(subject.model), "out": str(out), "options": []})
    if "error" in built:
        return {"error": built["error"]}
    ours = context.folder(SUITE, subject.name) / f"artifact-{number}"
    spec = {"ours": str(ours), "other": str(out), "prompt": _PROMPT, "tokens": _TOKENS, "vocabulary": 49152}
    return context.step(SUITE, "generation", "generation", {**spec, "rounds": 4 if context.quick else 20})
