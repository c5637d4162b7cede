"""Token reduction on real images: accuracy, agreement with dense, operations, and speed beside their ideal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.bench.harness import Context, Row, drop
from tests.bench.quality import describe, image_folders

SUITE = "tokens"
_NAME = "ViT-tiny"
MODEL, IMAGES = "models/vit-tiny-patch16-224-imagenet1k", "images"
_SHARES = (0.8, 0.7, 0.6)
_COUNTS = (8, 11, 13)
"""Schedules that take about 25, 35 and 43 % of ViT-tiny's operations: in three blocks, or in every block."""
_BY_SHARE = (
    "evit",
    "zero-tprune",
    "token-transforming",
    "received",
    "spatten",
    "attentive-mask",
    "clca",
    "random-tokens",
)
_BY_COUNT = ("tome", "gtp", "diffrate", "random-tokens")
PASSES = (
    *(f"{name}: {{keep: {keep}}}" for name in _BY_SHARE for keep in _SHARES),
    *(f"{name}: {{r: {r}}}" for name in _BY_COUNT for r in _COUNTS),
    *(f"token-transforming: {{keep: {keep}, head_only: true}}" for keep in _SHARES),
    "tome: {r: 8, score: random}",
    "tome: {r: 13, score: random}",
    "tome: {r: 13, proportional: false}",
    "tome: {r: 8, keep_norm: true}",
    "tome: {r: 13, keep_norm: true}",
    *(f"token-transforming: {{keep: {keep}, keep_norm: true}}" for keep in _SHARES),
    "token-transforming: {keep: 0.6, score: random}",
    "token-transforming: {keep: 0.7} + int8-dynamic: {}",
    "width: {sparsity: 0.2} + token-transforming: {keep: 0.7} + int8-dynamic: {}",
)
BATCHES = (1, 8)


def run(context: Context) -> Row:
    """Run every pass on ViT-tiny and all images, and time each artifact beside the dense export."""
    found = [context.data / name for name in (MODEL, IMAGES)] if context.data is not None else []
    if missing := [path.name for path in found if not path.exists()] or (not found and [MODEL]):
        skipped = [{"what": _NAME, "reason": f"{missing[0]} is not here"}]
        return {"settings": [], "rows": [], "skipped": skipped, "planned": []}
    model, images = found
    chosen = [(n, line) for n, line in enumerate(PASSES) if re.search(context.only or "", line)]
    count = 48 if context.quick else None
    dense = context.folder(SUITE, "dense")
    if context.timed:
        context.step(SUITE, "dense", "export_ours", {"model": str(model), "out": str(dense)})
        rows = [_row(context, number, line, model, images, dense, count) for number, line in chosen]
    else:
        rows = _untimed(context, [line for _, line in chosen if " + " not in line], model, images, count)
    settings = [{"name": _NAME, "images": count or "all", "batches": list(BATCHES)}]
    planned = [[_NAME, line] for line in PASSES]
    return {"settings": settings, "rows": rows, "skipped": [], "planned": planned}


def recipe(line: str, data: str) -> str:
    """Return the text of a recipe of the passes in `line`, `a + b`."""
    passes = "".join(f"  - {part}\n" for part in line.split(" + "))
    return f"version: 1\nname: benchmark\n{data}passes:\n{passes}"


def _data(context: Context, line: str, images: Path, count: int | None) -> str:
    """Return the data of a recipe: all images; with a calibrated pass every fourth calibrates, the others judge."""
    samples = f", samples: {count}" if count is not None else ""
    if "width" not in line:
        return f"evaluation: {{data: {images}{samples}}}\n"
    calibration, held_out, found = image_folders(context, images)
    return (
        f"calibration: {{data: {calibration}, samples: {min(found, count or found)}}}\n"
        f"evaluation: {{data: {held_out}{samples}}}\n"
    )


def _untimed(context: Context, lines: list[str], model: Path, images: Path, count: int | None) -> list[dict[str, Any]]:
    """Return rows without speed, measured in PyTorch in one process: an export takes longer than all the rest."""
    spec = {"model": str(model), "images": str(images), "lines": lines, "samples": count}
    done = context.step(SUITE, "quality", "reduced_quality", spec)
    return [{"model": _NAME, "pass": line, **done.get(line, done)} for line in lines]


def _row(
    context: Context, number: int, line: str, model: Path, images: Path, dense: Path, count: int | None
) -> dict[str, Any]:
    out = context.folder(SUITE) / f"artifact-{number}"
    drop(out)
    spec = {"text": recipe(line, _data(context, line, images, count)), "model": str(model), "out": str(out)}
    done = context.step(SUITE, f"run-{number}", "pipeline", spec)
    row = {"model": _NAME, "pass": line, **describe(done)}
    if "error" in row:
        return row
    rounds, seconds = (7, 1.0) if context.quick else (21, 6.0)
    sides = {"ours": done["artifact"], "other": str(dense)}
    timed = context.step(
        SUITE, f"timing-{number}", "timing", {**sides, "batches": list(BATCHES), "rounds": rounds, "seconds": seconds}
    )
    if "error" in timed:
        return {**row, "timing_error": timed["error"]}
    kept = ("batch", "speedup", "speedup_quartiles")
    return {**row, "phases": [{key: phase[key] for key in kept} for phase in timed["phases"]]}
