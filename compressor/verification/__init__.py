"""Verification: reload an artifact in a fresh process, compare, time and judge it.

`run_fresh(job)` starts `python -m compressor.verification JOB.json OUT.json`; `verify(job)` is what that process does.
Every check that can still run does run after a failed one, so that a changed hash does not hide the numerical reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.data.kinds import EvalData
from compressor.data.questions import load_samples
from compressor.errors import (
    CompressorError,
    DataError,
    ModelError,
    ResourceError,
    UsageError,
    VerificationError,
)
from compressor.machine.asking import ask
from compressor.machine.fresh import Ended
from compressor.machine.memory import peak_memory
from compressor.machine.shortage import mentions_shortage
from compressor.measure.benchmark import compare
from compressor.measure.evaluation import check_metrics, measure
from compressor.measure.opening import open_runner
from compressor.measure.runner import Runner, read_config, task_of
from compressor.measure.scores import Quality
from compressor.measure.timing import Timing
from compressor.measure.torch_runner import TorchRunner
from compressor.passes import methods
from compressor.storage.artifact import runtime_model
from compressor.storage.files import foreign_files, is_inside
from compressor.verification.baked import check_baked
from compressor.verification.code import check_code
from compressor.verification.codes import check_codes, check_inputs
from compressor.verification.continuations import continuations
from compressor.verification.exact import WEIGHT_ONLY, check_exact, check_levels
from compressor.verification.figures import cost_values, figures
from compressor.verification.graph import check_graph, open_checked
from compressor.verification.kept import kept_tokens
from compressor.verification.manifest import (
    MANIFEST,
    REFERENCE,
    check_files,
    check_shapes,
    parameter_count,
    read_manifest,
    seal,
)
from compressor.verification.ort import check_ort
from compressor.verification.overlap import check_overlap
from compressor.verification.precision import check_precision
from compressor.verification.quality import (
    STEP,
    check_bound_names,
    check_bounds,
    check_gain,
    check_gates_met,
    check_sanity,
    check_weight_only,
    derived,
)
from compressor.verification.reasons import explained
from compressor.verification.recorded import check_beside, check_rows
from compressor.verification.reference import check_determinism, check_reference, write_reference
from compressor.verification.reference_file import recorded_tensors
from compressor.verification.speed import elsewhere, without_speed
from compressor.verification.tokens import check_tokenizer
from compressor.verification.tolerances import TOLERANCES
from compressor.verification.verdict import Check, Job, Verdict, failed, whole, yes
from compressor.verification.weights import check_external, check_values, open_weights

__all__ = [
    "TOLERANCES",
    "MANIFEST",
    "REFERENCE",
    "VERIFY_STEPS",
    "Check",
    "Job",
    "Verdict",
    "parameter_count",
    "run_fresh",
    "seal",
    "verify",
    "write_reference",
]


VERIFY_STEPS = 4
"""How often `verify` tells that it has got further."""


def verify(job: Job, advance: Callable[[str], None] = lambda done: None) -> Verdict:
    """Verify an artifact in this process.

    Args:
        job: what is verified, and against what.
        advance: told what has been done: files, outputs, quality, speed.

    Returns:
        The verdict; failed checks are in it, not raised.

    Raises:
        UsageError: unknown bounds or metrics, or a dense model for another task.
        ModelError: there is no artifact folder, or the dense model cannot be loaded.
        DataError: the evaluation data cannot be used.
    """
    start = time.perf_counter()
    check_bound_names(job.bounds)
    if not job.artifact.is_dir():
        raise ModelError(f"{job.artifact}: no such artifact folder")
    dense = _open_dense(job)
    checks, runner, manifest = _check_artifact(job)
    advance("files and weights")
    precision = str(manifest.get("precision", "float32"))
    quality: Quality | None = None
    greedy: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}
    values: dict[str, float] = {}
    if runner is not None:
        checks += _check_parity(job, runner, precision)
        checks.append(check_determinism(runner, job.artifact / REFERENCE))
    advance("outputs")
    comparable = runner is not None and _right_task(job, runner, dense, checks)
    if job.data is not None and runner is not None and comparable:
        data = load_samples(job.data, runner.task, job.dense or job.artifact)
        quality, found = _check_quality(job, runner, dense, data)
        checks += found
        greedy = continuations(runner, dense, data) if dense is not None else []
        kept = kept_tokens(runner, data, job.images, job.threads) if job.images is not None else {}
    elif job.data is not None:
        checks.append(yes("quality.measured", False, "quality was not measured: see graph and files"))
    advance("quality")
    timing, found = _time(job, comparable)
    advance("speed")
    checks += found
    report = figures(job, quality, timing)
    values = {**_quality_values(quality), **cost_values(report, timing)}
    checks += _judge(job, values, timing, manifest, imitated=_imitates(runner, precision), measured=quality is not None)
    checks += check_gates_met(checks, job.bounds)
    ours, theirs = (quality.ours, quality.dense) if quality is not None else ({}, {})
    checks = [explained(check, ours, theirs, job.passes) for check in checks]
    return Verdict(
        checks=tuple(checks),
        **report,
        timing=timing.to_json() if timing else {},
        greedy=greedy,
        kept_tokens=kept,
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory(),
    )


def _judge(
    job: Job,
    values: dict[str, float],
    timing: Timing | None,
    manifest: dict[str, Any],
    *,
    imitated: bool,
    measured: bool,
) -> list[Check]:
    """Hold what was measured against the recipe's bounds and the gates; speed only where the artifact is to run.

    Args:
        job: what was asked.
        values: what was measured, by the names of bounds.
        timing: of the artifact and the dense model.
        manifest: of the artifact.
        imitated: see `_imitates`.
        measured: whether quality was.
    """
    speeds = [phase.speedup_interval() for phase in timing.phases if phase.other is not None] if timing else []
    bounds, away = job.bounds, elsewhere(manifest)
    checks: list[Check] = []
    if away is not None:
        bounds, checks = without_speed(job.bounds, away, gains=bool(speeds and job.passes))
    checks += check_bounds(values, bounds)
    if measured and manifest.get("precision") in WEIGHT_ONLY:
        checks += check_weight_only(values, bounds, alone=_only_quantized(job), step=_step(manifest))
    if away is None:
        best = max(speeds, key=lambda ends: ends[1], default=None) if not imitated else None
        checks += check_gain(values, best, job.passes, bounds, timed=bool(speeds))
    return checks


def run_fresh(job: Job, *, timeout: float | None = None, advance: Callable[[str], None] = lambda done: None) -> Verdict:
    """Verify in a fresh process, so that nothing in the compressing process can influence the result.

    Args:
        job: what is verified, and against what.
        timeout: seconds after which the process is ended.
        advance: as of `verify`.

    Raises:
        CompressorError: what `verify` raises, with its exit code; `ResourceError` when the process was killed for
            memory, `VerificationError` when the artifact crashed it or it took longer than `timeout` seconds.
    """
    request = {
        **job.to_json(),
        "artifact": str(job.artifact.resolve()),
        "dense": str(job.dense.resolve()) if job.dense else None,
    }
    try:
        data = ask(
            "compressor.verification", request, crashed=crash, threads=job.threads, timeout=timeout, heard=advance
        )
        verdict = Verdict.from_json(data)
    except TimeoutError as error:
        raise VerificationError(f"verification did not end within {timeout:.0f} s") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VerificationError(f"the verifying process left no verdict that can be read: {error}") from error
    return whole(verdict)


def crash(done: Ended) -> CompressorError:
    """Return the error for a verifying process that ended without an answer."""
    if done.code == -9 or mentions_shortage(done.last_line):
        return ResourceError("the verifying process was killed, most likely for want of memory")
    if done.code < 0:
        return VerificationError(
            f"the verifying process crashed (signal {-done.code}): the artifact breaks its runtime"
        )
    return CompressorError(f"the verifying process ended with exit code {done.code} and no verdict: {done.last_line}")


def _open_dense(job: Job) -> Runner | None:
    return open_runner(job.dense, job.threads) if job.dense is not None else None


def _check_artifact(job: Job) -> tuple[list[Check], Runner | None, dict[str, Any]]:
    """Check files, graph, weights and tokenizer; return the loaded artifact, or None, and its manifest."""
    folder = job.artifact
    checks, manifest, clean = check_own_files(folder)
    if not clean:
        return checks, None, manifest
    runner = _check_weights(job, manifest, checks)
    checks += _guard("tokenizer", lambda: check_tokenizer(folder, manifest, job.dense))
    checks += _guard("companions", lambda: check_beside(folder, job.dense))
    return checks, runner, manifest


def check_own_files(folder: Path) -> tuple[list[Check], dict[str, Any], bool]:
    """Check the files of a folder against its manifest.

    Returns:
        The checks, the manifest, and whether all files are the folder's own: else they are never handed to a library.
    """
    manifest: dict[str, Any] = {}
    checks: list[Check] = []
    try:
        manifest = read_manifest(folder)
        checks += _guard("files", lambda: check_files(folder, manifest))
    except ModelError as error:
        checks.append(failed("files.manifest", error))
    foreign = foreign_files(folder)
    others = [path for path in sorted(folder.iterdir()) if path.is_symlink() and path.name not in foreign]
    lost = [path.name for path in others if not is_inside(folder, path.name) or not path.exists()]
    reasons = [*foreign.values(), *(f"{name} is a link that leads to no file of the folder" for name in lost)]
    checks.append(yes("files.links", not reasons, "; ".join(reasons)))
    return checks, manifest, not reasons


def _imitates(runner: Runner | None, precision: str) -> bool:
    """Tell whether PyTorch imitates integer products with floats, so that its speed says nothing of a real runtime."""
    return isinstance(runner, TorchRunner) and precision in ("int8-dynamic", "int8-static")


def _only_quantized(job: Job) -> bool:
    known = methods()
    return all(name in known and known[name].family == "quantize" for name in job.passes)


def _step(manifest: dict[str, Any]) -> float | None:
    stated = manifest.get(STEP)
    return float(stated) if isinstance(stated, int | float) else None


def _right_task(job: Job, runner: Runner, dense: Runner | None, checks: list[Check]) -> bool:
    """Add the check that the artifact does what its config.json and the dense model do; return whether it passed."""
    try:
        stated = dense.task if dense is not None else task_of(read_config(job.artifact))
    except ModelError as error:
        checks.append(failed("graph.task", error))
        return False
    reason = f"the artifact computes {runner.task}, the model is for {stated}"
    checks.append(yes("graph.task", runner.task == stated, reason))
    return runner.task == stated


def _check_weights(job: Job, manifest: dict[str, Any], checks: list[Check]) -> Runner | None:
    """Add the checks of graph and weights; return the loaded artifact, or None if it cannot or must not be loaded."""
    folder = job.artifact
    try:
        weights = open_weights(folder)
    except ModelError as error:
        checks.append(failed("weights.readable", error))
        return None
    safe = True
    if weights.is_onnx:
        external = _guard("files.external", lambda: check_external(folder, weights, is_inside))
        safe = all(check.passed for check in external if check.name != "files.external.length")
        checks += external + _guard("graph", lambda: check_graph(weights))
        checks += _guard("config", lambda: check_baked(folder, weights))
    checks += _guard("code", lambda: check_code(folder, checkpoint=not weights.is_onnx, manifest=manifest))
    checks += _guard("shapes", lambda: check_shapes(folder, manifest, weights))
    checks += _guard("precision", lambda: check_precision(manifest, weights))
    if not safe:
        checks.append(yes("graph.session", False, "the artifact was not loaded: its data is missing or outside"))
        return None
    checks += _guard("weights", lambda: [*check_values(weights), *check_codes(weights, manifest)])
    checks += _guard("weights", lambda: [*check_levels(weights, manifest), *check_inputs(weights, manifest)])
    checks += _guard("weights", lambda: check_rows(weights))
    runner, check = open_checked(folder, job.threads)
    checks.append(check)
    return runner


def _guard(name: str, run: Callable[[], list[Check]]) -> list[Check]:
    """Run checks; whatever a library raises on a broken file becomes a failed check, and the others still run."""
    try:
        return run()
    except Exception as error:
        return [failed(name, error)]


def _check_parity(job: Job, runner: Runner, precision: str) -> list[Check]:
    """Compare with the reference: the artifact as shipped, and a weight-only one without rounded activations."""
    reference = job.artifact / REFERENCE
    weights = open_weights(job.artifact)
    if not weights.is_onnx and precision in WEIGHT_ONLY:
        precision = "float32"  # codes are dequantised: nothing is rounded on the way
    shipped = check_reference(runner, reference, precision)
    shipped += _guard(
        "tokens.overlap", lambda: check_overlap(weights, runner, recorded_tensors(reference), precision, job.threads)
    )
    shipped += _guard("parity.ort", lambda: check_ort(weights, runner, job.threads))
    return shipped + _guard("parity.exact", lambda: check_exact(weights, reference, precision, job.threads))


def _check_quality(
    job: Job, runner: Runner, dense: Runner | None, data: EvalData
) -> tuple[Quality | None, list[Check]]:
    check_metrics(job.metrics, runner.task, data, dense is not None)
    try:
        quality = measure(runner, data, dense)
    except (UsageError, DataError):
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        return None, [failed("quality.measured", error)]
    return quality, check_sanity(quality, job.bounds)


def _quality_values(quality: Quality | None) -> dict[str, float]:
    return derived(quality.ours, quality.dense) if quality is not None else {}


def _time(job: Job, loaded: bool) -> tuple[Timing | None, list[Check]]:
    if not job.timing or not loaded:
        return None, []
    same = job.dense is not None and _is_onnx(job.dense) == _is_onnx(job.artifact)
    try:
        timing = compare(
            job.artifact,
            job.dense if same else None,
            threads=job.threads,
            batch=job.batches,
            length=job.length,
            shorter=job.shorter,
            rounds=job.rounds,
            seconds=job.seconds,
            memory=job.memory,
        )
    except UsageError:
        raise
    except Exception as error:  # a graph that fails at one shape is a verdict, not a crash
        return None, [failed("speed.measured", error)]
    return timing, []


def _is_onnx(folder: Path) -> bool:
    return runtime_model(folder) is not None
