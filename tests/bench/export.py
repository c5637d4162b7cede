"""Encoder latency of our export (goal E2), and what an export costs (goal E3), beside plain torch.onnx and optimum."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from tests.bench.harness import Context, Row
from tests.bench.quality import minilm
from tests.bench.speed import dense_geometry

SUITE = "export"
OPTIMUM_VARIABLE = "COMPRESSOR_OPTIMUM_CLI"
_LENGTHS, _BATCHES = (16, 64, 128), (1, 8)
_OPSET = 18


def run(context: Context) -> Row:
    """Export every model that is here in every way that is here; then time the encoder's graphs."""
    models, skipped = _models(context)
    optimum = os.environ.get(OPTIMUM_VARIABLE) or shutil.which("optimum-cli")
    optimum = optimum if optimum and _has_onnx(optimum) else None
    if optimum is None:
        reason = f"no optimum-cli with optimum-onnx: it needs an environment of its own, named by {OPTIMUM_VARIABLE}"
        skipped.append({"what": "optimum-cli export + O2", "reason": reason})
    costs: list[Row] = []
    for name, (folder, task) in models.items():
        costs += _costs(context, name, folder, task, optimum)
    rows, missing = _encoder(context, costs)
    return {"settings": {"opset": _OPSET, "lengths": list(_LENGTHS), "batches": list(_BATCHES)},
            "rows": costs, "encoder": rows, "skipped": skipped + missing}  # fmt: skip


def _has_onnx(command: str) -> bool:
    """Tell whether an optimum-cli can export: the command of optimum's core alone cannot."""
    import subprocess

    done = subprocess.run([command, "export", "onnx", "--help"], capture_output=True, check=False)
    return done.returncode == 0


def _models(context: Context) -> tuple[dict[str, tuple[Path, str]], list[Row]]:
    models: dict[str, tuple[Path, str]] = {}
    skipped: list[Row] = []
    try:
        models["MiniLM"] = (minilm(), "feature-extraction")
    except FileNotFoundError as error:
        skipped.append({"what": "MiniLM", "reason": str(error)})
    if context.data is not None and (context.data / "models" / "llama-wt2").is_dir():
        models["llama-wt2"] = (context.data / "models" / "llama-wt2", "text-generation")
    else:
        skipped.append({"what": "llama-wt2", "reason": "the folder of real models and data is not here"})
    shape, folder = dense_geometry(quick=context.quick), context.scratch / SUITE / "synthetic"
    made = context.step(SUITE, "synthetic", "synthetic", {"folder": str(folder), "geometry": asdict(shape), "seed": 0})
    if "error" in made:
        skipped.append({"what": "random Llama", "reason": made["error"]})
    else:
        models[f"random Llama, {shape.parameters / 1e6:.0f} M"] = (folder, "text-generation")
    return models, skipped


def _costs(context: Context, name: str, folder: Path, task: str, optimum: str | None) -> list[Row]:
    """Export one model with every exporter, each in a process of its own."""
    slug = name.split(",")[0].replace(" ", "-")
    base = context.scratch / SUITE

    def spec(exporter: str) -> Row:
        return {"model": str(folder), "out": str(base / f"{slug}-{exporter}")}

    jobs: dict[str, tuple[str, Row]] = {
        "ours": ("export_ours", spec("ours")),
        f"torch.onnx, opset {_OPSET}": ("export_torch", {**spec("torch"), "task": task, "opset": _OPSET}),
    }
    if optimum is not None:
        given = spec("optimum")
        how = ["--optimize", "O2"] if task == "feature-extraction" else []
        named = task if task == "feature-extraction" else "text-generation-with-past"
        argv = [optimum, "export", "onnx", "-m", str(folder), "--library", "transformers"]
        argv += ["--task", named, *how, given["out"]]
        jobs["optimum-cli" + (" O2" if how else "")] = ("command", {"argv": argv, "out": given["out"]})
    rows = []
    for number, (exporter, (job, given)) in enumerate(jobs.items()):
        done = context.step(SUITE, f"{slug}-{number}", job, given)
        row = {"model": name, "task": task, "exporter": exporter, "folder": given["out"]}
        keys = ("error", "seconds", "cpu_seconds", "peak_bytes", "added_bytes", "file_bytes")
        rows.append({**row, "weights_bytes": _weights(folder), **{key: done[key] for key in keys if key in done}})
    return rows


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _encoder(context: Context, costs: list[Row]) -> tuple[list[Row], list[Row]]:
    """Time our encoder graph against each other one; drop the folders from the rows, which are written to files."""
    mine = [row for row in costs if row["task"] == "feature-extraction"]
    folders = {row["exporter"]: row["folder"] for row in mine if "error" not in row}
    for row in costs:
        del row["folder"]
    rows: list[Row] = []
    missing: list[Row] = []
    effort = {"rounds": 7, "seconds": 1.0} if context.quick else {"rounds": 21, "seconds": 3.0}
    for number, exporter in enumerate(name for name in folders if name != "ours"):
        spec = {"ours": folders.get("ours", ""), "other": folders[exporter], "lengths": list(_LENGTHS)}
        done = context.step(SUITE, f"timing-{number}", "timing", {**spec, "batches": list(_BATCHES), **effort})
        if "error" in done:
            missing.append({"what": f"latency beside {exporter}", "reason": done["error"]})
            continue
        for phase in done["phases"]:
            latency = {side: phase[side]["latency_ms"] for side in ("ours", "other")}
            rows.append({"other": exporter, "batch": phase["batch"], "length": phase["length"], "latency_ms": latency,
                         "latency_ratio": 1 / phase["speedup"], "quartiles": phase["speedup_quartiles"]})  # fmt: skip
    return rows, missing
