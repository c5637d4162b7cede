"""Quantization on real models, ours beside other quantizers on the same model and data; goals Q1, Q2 and Q3.

Ours go through the whole program. Of the others, ONNX Runtime's quantizers work on our dense export; the builder of
onnxruntime-genai and llm-compressor work on the checkpoint. Quality is measured by the same code on the same samples,
speed against our dense export, one pair at a time.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench import quality
from tests.bench.harness import Context, Row
from tests.bench.peers import LLMCOMPRESSOR
from tests.bench.quality import Subject

SUITE = "quantize"
_CALIBRATION, _WINDOWS = 128, 200
_LINES = (
    "rtn: {bits: 4, symmetric: true}",
    "rtn: {bits: 4}",
    "hqq: {bits: 4}",
    "awq: {bits: 4}",
    "gptq: {bits: 4, symmetric: true}",
    "gptq: {bits: 4}",
    "rsq: {bits: 4}",
    "gptq: {bits: 4, group_size: 16, symmetric: true}",
    "gptq: {bits: 4, group_size: 16}",
    "gptq: {bits: 4, group_size: 128}",
    "gptq: {bits: 4, embedding: 4, head: 4}",
    "rtn: {bits: 8}",
    "int8-dynamic: {}",
    "width: {sparsity: 0.3} + gptq: {bits: 4, embedding: 4, head: 4}",
)
_ENCODER_LINES = ("int8-dynamic: {}", "int8-static: {}", "rtn: {bits: 8}")


@dataclass(frozen=True)
class Peer:
    """Another quantizer.

    Attributes:
        title: how figures call it.
        job: of `tests.bench.peers`.
        options: of the job.
        timed: whether what it makes runs where ours does.
    """

    title: str
    job: str
    options: dict[str, Any]
    timed: bool = True


_PEERS = (
    Peer("ONNX Runtime MatMulNBits, symmetric", "ort_nbits", {"algorithm": "default", "symmetric": True}),
    Peer("ONNX Runtime MatMulNBits, asymmetric", "ort_nbits", {"algorithm": "default", "symmetric": False}),
    Peer("ONNX Runtime quantize_dynamic", "ort_dynamic", {"operators": ["MatMul"]}),
    Peer("onnxruntime-genai builder, default", "genai_int4", {"options": []}),
    Peer("onnxruntime-genai builder, k_quant", "genai_int4", {"options": ["algo_config=k_quant"]}),
)
# It refuses groups that do not divide the inputs, and the FFN's writer has 688 of them.
_LLMCOMPRESSOR_PEERS = tuple(
    Peer(
        f"llm-compressor GPTQ, groups of 16, {'symmetric' if symmetric else 'asymmetric'}, in PyTorch",
        "llmcompressor_gptq",
        {"group": 16, "symmetric": symmetric},
        timed=False,
    )
    for symmetric in (True, False)
)


def run(context: Context) -> Row:
    """Quantize llama-wt2 and MiniLM with every method, and with what others offer."""
    rows: list[Row] = []
    skipped: list[Row] = []
    settings: list[Row] = []
    planned: list[list[str]] = []
    for make in (_llama, _minilm):
        try:
            subject = make(context)
        except FileNotFoundError as error:
            skipped.append({"what": make.__name__.strip("_"), "reason": str(error)})
            continue
        peers = _peers(context, subject, skipped)
        names = ("name", "samples", "held_out", "length", "timed_length")
        settings.append({key: getattr(subject, key) for key in names})
        planned += [[subject.name, what] for what in (*subject.passes, *(peer.title for peer in peers))]
        chosen = tuple(line for line in subject.passes if _wanted(context, subject, line))
        rows += quality.measure(context, replace(subject, passes=chosen), SUITE) if chosen else []
        if (context.folder(SUITE, subject.name) / "dense" / "model.onnx").is_file():
            rows += [measure_peer(context, subject, peer) for peer in peers if _wanted(context, subject, peer.title)]
    return {"timed": context.timed, "settings": settings, "rows": rows, "skipped": skipped, "planned": planned}


def _wanted(context: Context, subject: Subject, what: str) -> bool:
    return re.search(context.only or "", f"{subject.name}: {what}") is not None


def _llama(context: Context) -> Subject:
    subject = quality.wikitext(context)
    lines = _LINES[1:6:4] if context.quick else _LINES
    return replace(subject, samples=_CALIBRATION, held_out=20 if context.quick else _WINDOWS, passes=lines, beside=None)


def _minilm(context: Context) -> Subject:
    return replace(
        quality.minilm_subject(context), samples=128, passes=_ENCODER_LINES[:1] if context.quick else _ENCODER_LINES
    )


def _peers(context: Context, subject: Subject, skipped: list[Row]) -> list[Peer]:
    """Return the other quantizers to run on a model; say which are not here."""
    if subject.name != "llama-wt2":
        return [Peer("ONNX Runtime quantize_dynamic", "ort_dynamic", {})]
    if context.quick:
        return list(_PEERS[:1])
    if os.environ.get(LLMCOMPRESSOR):
        return [*_PEERS, *_LLMCOMPRESSOR_PEERS]
    skipped.append({"what": "llm-compressor's GPTQ", "reason": f"{LLMCOMPRESSOR} names no interpreter that has it"})
    return list(_PEERS)


def measure_peer(context: Context, subject: Subject, peer: Peer, suite: str = SUITE) -> Row:
    """Let another quantizer work, and measure what it has made."""
    folder = context.folder(suite, subject.name)
    step = f"{subject.name}-peer-{re.sub('[^a-z0-9]+', '-', peer.title.lower())}"
    out = folder / step
    spec = {"model": str(folder / "dense"), "out": str(out), "bits": 4, "block": 32, **peer.options}
    if peer.job in ("genai_int4", "llmcompressor_gptq"):
        spec["model"] = str(subject.model)
    if peer.job == "llmcompressor_gptq":
        spec |= {"data": str(subject.calibration), "samples": subject.samples, "length": subject.length}
    made = context.step(suite, step, peer.job, spec)
    return _peer_row(context, subject, peer.title, step, out, made, suite, timed=peer.timed)


def _peer_row(
    context: Context, subject: Subject, title: str, step: str, out: Path, made: Row, suite: str, *, timed: bool = True
) -> Row:
    """Measure what a peer has made, and return it as a row like ours."""
    row: Row = {"model": subject.name, "pass": title, "peer": True, "evaluated": subject.held_out}
    if "error" in made:
        return {**row, "error": made["error"]}
    dense = context.folder(suite, subject.name) / "dense"
    spec = {"ours": str(out), "dense": str(dense if timed else subject.model), "tokenizer": str(subject.model)}
    spec |= {"data": str(subject.evaluation), "samples": subject.held_out, "length": subject.length}
    found = context.step(suite, f"{step}-quality", "measured_quality", spec)
    if "error" in found:
        return {**row, "error": found["error"]}
    row |= {"metrics": found["ours"], "dense_metrics": found["dense"], "cpu_seconds": made["cpu_seconds"]}
    row["peak_bytes"] = made["process"]["peak_bytes"]
    if "perplexity" in found["ours"]:
        row["perplexity_ratio"] = found["ours"]["perplexity"] / found["dense"]["perplexity"]
    if timed:
        row["bytes"] = found["bytes"]
        row["ratios"] = {"bytes": found["bytes"] / found["dense_bytes"]}
        if context.timed:
            row |= quality.speedups(
                context.step(suite, f"{step}-timing", "timing", quality.timing(context, subject, str(out), dense))
            )
    return row
