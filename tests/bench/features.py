"""DINOv2-small on photographs: how near embeddings stay to the dense model's, size, operations and measured speed.

The model lies in the folder that `$COMPRESSOR_REAL_MODELS` names; its images are smaller than it was trained on.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tests.bench.harness import Context, Row, drop
from tests.bench.quality import describe
from tests.bench.real import VARIABLE

SUITE = "features"
MODEL, IMAGES = "dinov2-small", "images"
PASSES = (
    "int8-dynamic: {}",
    "width: {sparsity: 0.2}",
    "width: {sparsity: 0.2} + int8-dynamic: {}",
    "tome: {r: 8}",
    "tome: {r: 13}",
    "tome: {r: 8} + int8-dynamic: {}",
)
BATCHES = (1, 8)


def run(context: Context) -> Row:
    """Run every pass on the model and all images, and time each artifact beside the dense export."""
    model, images = Path(os.environ.get(VARIABLE) or "absent") / MODEL, (context.data or Path("absent")) / IMAGES
    missing = [str(path.name) for path in (model / "config.json", images / "labels.csv") if not path.is_file()]
    if missing:
        reason = f"{missing[0]} is not in the folder of models and data"
        return {"settings": {}, "rows": [], "skipped": [{"what": MODEL, "reason": reason}]}
    chosen = [line for line in PASSES if re.search(context.only or "", line)]
    calibrated, judged = (16, 32) if context.quick else (128, 256)
    dense = context.folder(SUITE, "dense")
    context.step(SUITE, "dense", "export_ours", {"model": str(model), "out": str(dense)})
    rows = [
        _row(context, number, line, model, dense, recipe(line, images, calibrated, judged))
        for number, line in enumerate(chosen)
    ]
    return {"settings": {"calibrated": calibrated, "judged": judged, "batches": BATCHES}, "rows": rows, "skipped": []}


def recipe(line: str, images: Path, calibrated: int, judged: int) -> str:
    """Return the text of a recipe of the passes in `line`, `a + b`; an own seed draws the images that calibrate."""
    calibration = f"calibration: {{data: {images}, samples: {calibrated}, seed: 1}}\n" if "width" in line else ""
    passes = "".join(f"  - {part}\n" for part in line.split(" + "))
    return (
        f"version: 1\nname: benchmark\n{calibration}"
        f"evaluation: {{data: {images}, samples: {judged}}}\npasses:\n{passes}"
    )


def _row(context: Context, number: int, line: str, model: Path, dense: Path, text: str) -> dict[str, Any]:
    out = context.folder(SUITE) / f"artifact-{number}"
    drop(out)
    done = context.step(SUITE, f"run-{number}", "pipeline", {"text": text, "model": str(model), "out": str(out)})
    row = {"model": MODEL, "pass": line, **describe(done)}
    if "error" in row:
        return row
    rounds, seconds = (7, 1.0) if context.quick else (21, 6.0)
    spec = {"ours": done["artifact"], "other": str(dense), "batches": list(BATCHES)}
    timed = context.step(SUITE, f"timing-{number}", "timing", {**spec, "rounds": rounds, "seconds": seconds})
    if "error" in timed:
        return {**row, "timing_error": timed["error"]}
    kept = ("batch", "speedup", "speedup_quartiles")
    return {**row, "phases": [{key: phase[key] for key in kept} for phase in timed["phases"]]}
