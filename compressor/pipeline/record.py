"""What a run writes down of itself: seconds, what each pass did, costs, the report."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from compressor.data.reading import DataRequest
from compressor.machine.memory import peak_memory
from compressor.machine.processor import cpu
from compressor.model.cost import Cost, count_cost, layers_before_and_after
from compressor.model.folder import ModelFolder
from compressor.passes.apply import fingerprint_environment
from compressor.passes.base import Explains, Pass, Searches
from compressor.pipeline.as_run import public
from compressor.pipeline.plan import artifact_dtype
from compressor.pipeline.prepare import Prepared
from compressor.pipeline.whole import Whole
from compressor.recipe import METRICS, PART
from compressor.report import build_report, without_paths
from compressor.verification import Verdict
from compressor.walk import Change


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        """Start at zero; the total runs from here."""
        self.seconds = dict.fromkeys(("load", "calibrate", "passes", "export", "verify"), 0.0)
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def total(self) -> dict[str, float]:
        """Return the stages and the total."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


def compute_device() -> str:
    """Return the torch device that passes compute on: `cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pass_entry(method: Pass, before: ModelFolder, after: ModelFolder, changes: list[Change], seconds: float) -> Any:
    """Return the entry of a pass in the report (`compressor.report.schema.PassEntry`), its quality not yet measured."""
    sizes = layers_before_and_after(before, after)
    return {
        "name": method.name,
        "family": method.family,
        "seconds": seconds,
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
        "quality_after": {},
        "layers": [{**entry, **change.figures} for entry, change in zip(sizes, changes, strict=True)],
        "notes": list(method.notes) if isinstance(method, Explains) else [],
        "trials": [asdict(trial) for trial in method.trials] if isinstance(method, Searches) else [],
    }


def of_part(entry: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the entry of a pass on one part of a model, whose metrics have the names that they have for the whole."""

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {whole: value for name, value in values.items() if (whole := f"{name}_{part}") in METRICS}

    measured: dict[str, Any] = {key: renamed(entry[key]) for key in ("quality_after", "quality_dense") if key in entry}
    return {**entry, **measured, PART: part}


def quantization_step(entries: list[dict[str, Any]]) -> float | None:
    """Return what the quantize passes at the end of a run added to perplexity: after over before, minus 1."""
    last = len(entries)
    while last and entries[last - 1]["family"] == "quantize":
        last -= 1
    if last == len(entries) or not entries[-1]["quality_after"]:
        return None
    before = entries[last - 1]["quality_after"] if last else entries[0]["quality_dense"]
    after = entries[-1]["quality_after"]
    return float(after["perplexity"] / before["perplexity"] - 1) if "perplexity" in after else None


def count_costs(prepared: Prepared, compressed: ModelFolder) -> tuple[Cost, Cost]:
    """Return the theoretical costs of the dense and of the compressed model, each as it is stored."""
    graph = prepared.recipe.export.format != "safetensors"
    dense = count_cost(prepared.source, prepared.length, artifact_dtype(prepared, after=0), graph=graph)
    return dense, count_cost(compressed, prepared.length_after, artifact_dtype(prepared), graph=graph)


def run_report(
    prepared: Prepared | Whole,
    costs: tuple[Cost, Cost],
    entries: list[dict[str, Any]],
    verdict: Verdict,
    clock: Clock,
    sweep: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the report of a run, version 1.

    Args:
        prepared: the recipe bound to its model, or to all parts of it.
        costs: of the dense and of the compressed model.
        entries: what each pass did.
        verdict: of the verification.
        clock: what the stages took.
        sweep: the points of the recipe's sweep, where it has one.

    Raises:
        VerificationError: the parts do not make a valid report.
    """
    sides = []
    for cost, side in zip(costs, (verdict.dense, verdict.compressed), strict=True):
        sides.append({**side, "parameters": cost.parameters, "flops": cost.flops, "weight_bytes": cost.bytes})
    report = build_report(
        model={"id": public(prepared.model_id), "parameters": costs[0].parameters, "task": prepared.task},
        dense=sides[0],
        compressed=sides[1],
        checks=[{**check, "reason": without_paths(check["reason"])} for check in verdict.to_json()["checks"]],
        passes=entries,
        speedup=verdict.ratios.get("speedup"),
        speedup_interval=verdict.ratios.get("speedup_interval"),
        seconds=clock.total(),
        peak_memory_bytes=peak_memory(),
        environment={**_environment(prepared), "benchmark": _timing_conditions(verdict)},
        greedy=verdict.greedy,
        kept_tokens=verdict.kept_tokens,
        kinds=verdict.kinds,
        sweep=sweep,
    )
    return {**report, "notes": list(prepared.doubts)}


def _timing_conditions(verdict: Verdict) -> dict[str, Any]:
    phases = verdict.timing.get("phases", [])
    shown = [f"{p['name']} batch {p['batch']} length {p['length']}" for p in phases]
    return {
        "threads": verdict.timing.get("threads"),
        "rounds": verdict.timing.get("rounds"),
        "clock": ", ".join(sorted({p["clock"] for p in phases})),
        "phases": "; ".join(shown),
    }


def _environment(prepared: Prepared | Whole) -> dict[str, Any]:
    import onnx
    import onnxruntime

    return {
        **fingerprint_environment(),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": compute_device(),
        "target": prepared.target.processor,
        "seed": prepared.calibration.seed if prepared.calibration is not None else None,
        "calibration": _data(prepared.calibration) if prepared.uses_calibration else None,
        "evaluation": _data(prepared.evaluation),
    }


def _processor() -> dict[str, Any]:
    found = cpu()
    features = [name for name, there in (found["features"] or {}).items() if there]
    return {"name": found["model"], "cores": found["cores"], "features": features}


def _data(request: DataRequest | None) -> dict[str, Any] | None:
    """Return which data was used, how many samples were asked for, and of how many tokens."""
    if request is None:
        return None
    return {"data": public(request.data), "samples": request.samples, "length": request.length}
