"""Quantization on real models, ours beside other quantizers on the same model and data; goals Q1, Q2 and Q3.

Ours go through the whole program. Of the others, ONNX Runtime's quantizers work on our dense export; the builder of
onnxruntime-genai and llm-compressor work on the checkpoint. Quality is measured by the same code on the same samples,
speed against our dense export, one pair at a time.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench import quality
from tests.bench.harness import Context, Row
from tests.bench.peers import LLMCOMPRESSOR
from tests.bench.quality import Subject

SUITE = "quantize"
_LEFT_OUT = "left out when this was measured (`--only`)"
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
_PEERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ONNX Runtime MatMulNBits, symmetric", "ort_nbits", {"algorithm": "default", "symmetric": True}),
    ("ONNX Runtime MatMulNBits, asymmetric", "ort_nbits", {"algorithm": "default", "symmetric": False}),
    ("ONNX Runtime quantize_dynamic", "ort_dynamic", {"operators": ["MatMul"]}),
    ("onnxruntime-genai builder, default", "genai_int4", {"options": []}),
    ("onnxruntime-genai builder, k_quant", "genai_int4", {"options": ["int4_algo_config=k_quant"]}),
)


def run(context: Context) -> Row:
    """Quantize llama-wt2 and MiniLM with every method, and with what others offer."""
    rows: list[Row] = []
    skipped: list[Row] = []
    settings: list[Row] = []
    for make in (_llama, _minilm):
        try:
            subject = make(context)
        except FileNotFoundError as error:
            skipped.append({"what": make.__name__.strip("_"), "reason": str(error)})
            continue
        names = ("name", "samples", "held_out", "length", "timed_length")
        settings.append({key: getattr(subject, key) for key in names})
        chosen = tuple(line for line in subject.passes if _wanted(context, subject, line))
        if left := len(subject.passes) - len(chosen):
            skipped.append({"what": f"{left} of {len(subject.passes)} runs on {subject.name}", "reason": _LEFT_OUT})
        rows += quality.measure(context, replace(subject, passes=chosen), SUITE) if chosen else []
        rows += _peers(context, subject, skipped)
    return {"timed": context.timed, "settings": settings, "rows": rows, "skipped": skipped}


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


def _peers(context: Context, subject: Subject, skipped: list[Row]) -> list[Row]:
    folder = context.folder(SUITE, subject.name)
    dense = folder / "dense"
    if not (dense / "model.onnx").is_file():
        return []
    decoder = subject.name == "llama-wt2"
    peers = list(_PEERS) if decoder else [("ONNX Runtime quantize_dynamic", "ort_dynamic", {})]
    rows = []
    for number, (name, job, options) in enumerate(peers[:1] if context.quick else peers):
        if not _wanted(context, subject, name):
            skipped.append({"what": f"{name} on {subject.name}", "reason": _LEFT_OUT})
            continue
        out = folder / f"peer-{number}"
        source = subject.model if job == "genai_int4" else dense
        spec = {"model": str(source), "out": str(out), "bits": 4, "block": 32, **options}
        made = context.step(SUITE, f"{subject.name}-peer-{number}", job, spec)
        rows.append(_peer_row(context, subject, name, f"{subject.name}-peer-{number}", out, made))
    if decoder and not context.quick:
        rows += _llmcompressor(context, subject, folder, skipped)
    return rows


def _llmcompressor(context: Context, subject: Subject, folder: Path, skipped: list[Row]) -> list[Row]:
    if not os.environ.get(LLMCOMPRESSOR):
        skipped.append({"what": "llm-compressor's GPTQ", "reason": f"{LLMCOMPRESSOR} names no interpreter that has it"})
        return []
    rows = []
    for symmetric in (True, False):
        if not _wanted(context, subject, f"llm-compressor, {'symmetric' if symmetric else 'asymmetric'}"):
            continue
        name = f"{subject.name}-llmcompressor-{'sym' if symmetric else 'asym'}"
        out = folder / name
        spec = {"model": str(subject.model), "out": str(out), "data": str(subject.calibration)}
        spec |= {"samples": subject.samples, "length": subject.length, "group": 16, "symmetric": symmetric}
        made = context.step(SUITE, name, "llmcompressor_gptq", spec)
        # It refuses groups that do not divide the inputs, and the FFN's writer has 688 of them.
        title = f"llm-compressor GPTQ, groups of 16, {'symmetric' if symmetric else 'asymmetric'}, in PyTorch"
        rows.append(_peer_row(context, subject, title, name, out, made, timed=False))
    return rows


def _peer_row(
    context: Context, subject: Subject, title: str, step: str, out: Path, made: Row, *, timed: bool = True
) -> Row:
    """Measure what a peer has made, and return it as a row like ours."""
    row: Row = {"model": subject.name, "pass": title, "peer": True, "evaluated": subject.held_out}
    if "error" in made:
        return {**row, "error": made["error"]}
    dense = context.folder(SUITE, subject.name) / "dense"
    spec = {"ours": str(out), "dense": str(dense if timed else subject.model), "tokenizer": str(subject.model)}
    spec |= {"data": str(subject.evaluation), "samples": subject.held_out, "length": subject.length}
    found = context.step(SUITE, f"{step}-quality", "measured_quality", spec)
    if "error" in found:
        return {**row, "error": found["error"]}
    row |= {"metrics": found["ours"], "dense_metrics": found["dense"], "cpu_seconds": made["cpu_seconds"]}
    if "perplexity" in found["ours"]:
        row["perplexity_ratio"] = found["ours"]["perplexity"] / found["dense"]["perplexity"]
    if timed:
        row["bytes"] = found["bytes"]
        row["ratios"] = {"bytes": found["bytes"] / found["dense_bytes"]}
        if context.timed:
            row |= quality.speedups(
                context.step(SUITE, f"{step}-timing", "timing", quality.timing(context, subject, str(out), dense))
            )
    return row
