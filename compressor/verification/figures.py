"""The figures of a verdict, as report.json has them, and the values that bounds on cost are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.measure.benchmark import file_bytes
from compressor.measure.scores import Interval, Quality
from compressor.measure.timing import Timing
from compressor.recipe import BOUNDS, METRICS
from compressor.verification.manifest import parameter_count
from compressor.verification.verdict import Job


def figures(job: Job, quality: Quality | None, timing: Timing | None) -> dict[str, dict[str, Any]]:
    """Return report.json's `dense`, `compressed` and `ratios`."""
    intervals = quality.intervals() if quality else ({}, {})
    latency = timing.latency_ms() if timing else {}
    compressed = _side(job.artifact, quality.ours if quality else {}, intervals[0], latency, job)
    samples = quality.samples if quality else None
    compressed |= {"flops": job.flops[1] if job.flops else None, "samples": samples}
    kept = _kept(job.artifact)
    compressed["metrics"] |= kept
    if job.dense is None:
        return {"dense": {}, "compressed": compressed, "ratios": {}}
    latency = timing.latency_ms("other") if timing else {}
    dense = _side(job.dense, quality.dense if quality else {}, intervals[1], latency, job)
    dense |= {"flops": job.flops[0] if job.flops else None, "samples": samples}
    dense["metrics"] |= dict.fromkeys(kept, 1.0)
    keys = [key for key in ("bytes", "parameters", "flops") if compressed.get(key) and dense.get(key)]
    ratios: dict[str, Any] = {key: compressed[key] / dense[key] for key in keys}
    ratios["speedup"] = timing.speedup() if timing else {}
    ratios["speedup_interval"] = timing.speedup_interval() if timing else {}
    return {"dense": dense, "compressed": compressed, "ratios": ratios}


def _side(
    folder: Path, metrics: dict[str, float], intervals: dict[str, Interval], latency: dict[str, float], job: Job
) -> dict[str, Any]:
    from compressor.model.folder import open_model

    wanted = {shown for name, facts in METRICS.items() if name in job.metrics for shown in (name, *facts.brings)}
    shown = {name: value for name, value in metrics.items() if not wanted or name in wanted}
    # Changes from dense are listed beside the metric that they follow from.
    sure = {name: list(pair) for name, pair in intervals.items() if BOUNDS[name].metric in shown}
    side: dict[str, Any] = {"bytes": file_bytes(folder), "metrics": shown, "intervals": sure, "latency_ms": latency}
    try:
        side["parameters"] = parameter_count(open_model(folder))
    except CompressorError:
        side["parameters"] = None  # `shapes.config` already says why
    return side


def _kept(folder: Path) -> dict[str, float]:
    """Return `kept_tokens` of an artifact in which tokens go."""
    from compressor.model.cost import kept_share
    from compressor.model.folder import open_model

    try:
        share = kept_share(open_model(folder))
    except CompressorError:  # `shapes.config` already says why
        return {}
    return {} if share is None else {"kept_tokens": share}


def cost_values(report: dict[str, dict[str, Any]], timing: Timing | None) -> dict[str, float]:
    """Return what bounds on size, speed and memory are held against, by the names of those bounds."""
    values: dict[str, float] = {"bytes": float(report["compressed"]["bytes"])}
    values |= {name: value for name, value in report["compressed"]["metrics"].items() if name == "kept_tokens"}
    for name, key in (("size_ratio", "bytes"), ("parameters_ratio", "parameters"), ("flops_ratio", "flops")):
        if key in report["ratios"]:
            values[name] = report["ratios"][key]
    if timing is None:
        return values
    values |= {f"latency_{phase}_ms": ms for phase, ms in timing.latency_ms().items()}
    speedup = timing.speedup()
    if speedup:
        values |= {f"speedup_{phase}": ratio for phase, ratio in speedup.items()} | {"speedup": min(speedup.values())}
    if timing.other is not None and timing.ours.memory_bytes and timing.other.memory_bytes:
        values["memory_ratio"] = timing.ours.memory_bytes / timing.other.memory_bytes
    return values
