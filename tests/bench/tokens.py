"""Token reduction on real images: accuracy, agreement with dense, operations, and speed beside their ideal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.bench.harness import Context, Row, drop
from tests.bench.quality import describe

SUITE = "tokens"
MODEL, IMAGES = "models/vit-tiny-patch16-224-imagenet1k", "images"
PASSES = (
    "tome: {r: 8}",
    "tome: {r: 8, score: random}",
    "tome: {r: 13}",
    "tome: {r: 13, proportional: false}",
    "tome: {r: 13, score: random}",
)
BATCHES = (1, 8)


def run(context: Context) -> Row:
    """Run every pass on ViT-tiny and all images, and time each artifact beside the dense export."""
    found = [context.data / name for name in (MODEL, IMAGES)] if context.data is not None else []
    if missing := [path.name for path in found if not path.exists()] or (not found and [MODEL]):
        return {"settings": {}, "rows": [], "skipped": [{"what": "ViT-tiny", "reason": f"{missing[0]} is not here"}]}
    model, images = found
    chosen = [line for line in PASSES if re.search(context.only or "", line)]
    count = 48 if context.quick else None
    dense = context.folder(SUITE, "dense")
    context.step(SUITE, "dense", "export_ours", {"model": str(model), "out": str(dense)})
    rows = [_row(context, number, line, model, images, dense, count) for number, line in enumerate(chosen)]
    return {"settings": {"images": count or "all", "batches": BATCHES}, "rows": rows, "skipped": []}


def recipe(line: str, images: Path, count: int | None) -> str:
    """Return the text of a recipe of the passes in `line`, `a + b`, judged on the images."""
    samples = f", samples: {count}" if count is not None else ""
    passes = "".join(f"  - {part}\n" for part in line.split(" + "))
    return f"version: 1\nname: benchmark\nevaluation: {{data: {images}{samples}}}\npasses:\n{passes}"


def _row(
    context: Context, number: int, line: str, model: Path, images: Path, dense: Path, count: int | None
) -> dict[str, Any]:
    out = context.folder(SUITE) / f"artifact-{number}"
    drop(out)
    spec = {"text": recipe(line, images, count), "model": str(model), "out": str(out)}
    done = context.step(SUITE, f"run-{number}", "pipeline", spec)
    row = {"model": "ViT-tiny", "pass": line, **describe(done)}
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
