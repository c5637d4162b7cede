"""What verification is asked (`Job`), what it finds (`Check`) and what it concludes (`Verdict`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from compressor.data.reading import DataRequest
from compressor.errors import ModelError, UsageError, VerificationError
from compressor.machine.shortage import raise_shortage

Bounds: TypeAlias = Mapping[str, Mapping[str, float]]
Scalar: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class Check:
    """One thing that was verified.

    Attributes:
        name: dotted name, most general part first.
        passed: whether the artifact satisfies it.
        value: what was measured; None when it could not be measured or was not finite.
        bound: `{"min": ...}`, `{"max": ...}` or `{"equal": ...}`; None for a plain yes or no.
        unit: unit of value and bound; empty for a plain number.
        reason: for a failed check, what is wrong, in one sentence; for one that was not judged, why not.
        damaged: the failure means that a file cannot be read at all (exit code 3 instead of 4).
    """

    name: str
    passed: bool
    value: Scalar = None
    bound: Mapping[str, Scalar] | None = None
    unit: str = ""
    reason: str = ""
    damaged: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the keys of a check in report.json."""
        return {
            "name": self.name,
            "value": self.value,
            "bound": dict(self.bound) if self.bound is not None else None,
            "passed": self.passed,
            "unit": self.unit,
            "reason": self.reason,
        }


def bounded(
    name: str,
    value: float | None,
    *,
    least: float | None = None,
    most: float | None = None,
    unit: str = "",
    why: str = "",
) -> Check:
    """Return a check that a number is there, is finite and lies within its bound; NaN never passes.

    Args:
        name: of the check.
        value: measured; None when it could not be measured.
        least: smallest allowed value.
        most: largest allowed value.
        unit: of value and bound.
        why: put behind the reason of a failure: what it means, or why nothing was measured.
    """
    bound = {key: limit for key, limit in (("min", least), ("max", most)) if limit is not None}
    tail = f": {why}" if why else ""
    if value is None:
        return Check(name, False, None, bound, unit, f"{name} was not measured{tail}")
    if not math.isfinite(value):
        return Check(name, False, None, bound, unit, f"{name} is {value}, not a finite number{tail}")
    above = most is not None and value > most
    below = least is not None and value < least
    if not above and not below:
        return Check(name, True, value, bound, unit)
    side = f"at most {_short(most)}" if above else f"at least {_short(least)}"
    return Check(
        name, False, value, bound, unit, f"{name} is {_short(value)}, allowed is {side} {unit}".rstrip() + tail
    )


def yes(name: str, passed: bool, reason: str, *, damaged: bool = False, value: Scalar = None) -> Check:
    """Return a check without a bound; `reason` is kept only when it failed."""
    return Check(name, passed, value, None, "", "" if passed else reason, damaged and not passed)


def not_judged(name: str, why: str, value: Scalar = None) -> Check:
    """Return a check that nothing is held against, with the reason why; reports show it apart from the others."""
    return Check(name, True, value, reason=f"not judged: {why}")


def failed(name: str, error: BaseException) -> Check:
    """Turn an error into a failed check; an unreadable model counts as damaged.

    Raises:
        ResourceError: memory ran out, which says nothing of the artifact.
    """
    raise_shortage(error)
    text = str(getattr(error, "message", error)).strip() or type(error).__name__
    # ONNX Runtime derives its exceptions from Exception directly; its text alone says what happened.
    return Check(name, False, reason=text.splitlines()[0][:300], damaged=isinstance(error, ModelError))


@dataclass(frozen=True)
class Job:
    """What to verify, and against what.

    Attributes:
        artifact: the folder to judge.
        dense: folder of the dense model in the same format; None leaves out quality against it and speed-up.
        bounds: the recipe's `verify` section: name -> {min, max}.
        data: evaluation data; None leaves out quality.
        metrics: metrics to report; empty means all that task and data allow.
        passes: methods that were applied; empty for a plain export.
        flops: theoretical operations of dense and ours, for the report and `flops_ratio`; None when unknown.
        threads: intra-op threads for everything.
        batches: batch sizes to time; the first gives the headline.
        length: tokens to time (see `compressor.measure.benchmark.compare`).
        shorter: by how many tokens prompts of ours are shorter when they are timed; see there.
        rounds: rounds per timed phase.
        seconds: time budget per timed phase.
        timing: whether to time at all.
        memory: whether to measure peak memory.
        images: evaluation images that are shown with what is kept of their tokens; None leaves kept tokens out.
    """

    artifact: Path
    dense: Path | None = None
    bounds: Bounds = field(default_factory=dict)
    data: DataRequest | None = None
    metrics: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    flops: tuple[int, int] | None = None
    threads: int = 1
    batches: tuple[int, ...] = (1, 4)
    length: int | None = None
    shorter: int = 0
    rounds: int = 15
    seconds: float = 6.0
    timing: bool = True
    memory: bool = True
    images: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        out = {**asdict(self), "artifact": str(self.artifact), "dense": str(self.dense) if self.dense else None}
        if self.data is not None:
            out["data"] = {**asdict(self.data), "bases": [str(base) for base in self.data.bases]}
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """Return the job that `to_json` described.

        Raises:
            UsageError: keys are missing or unknown.
        """
        given = dict(data)
        if unknown := sorted(set(given) - {f.name for f in fields(cls)}) or ("artifact" not in given and ["artifact"]):
            raise UsageError(f"verification job: unknown or missing key {unknown[0]}")
        request = given.get("data")
        if request is not None:
            given["data"] = DataRequest(**{**request, "bases": tuple(Path(b) for b in request["bases"])})
        for key in ("metrics", "passes", "batches"):
            if key in given:
                given[key] = tuple(given[key])
        given["flops"] = tuple(given["flops"]) if given.get("flops") else None
        given["artifact"] = Path(given["artifact"])
        given["dense"] = Path(given["dense"]) if given.get("dense") else None
        return cls(**given)


@dataclass(frozen=True)
class Verdict:
    """The outcome.

    Attributes:
        checks: everything that was verified, in order.
        dense: report.json's `dense` figures (empty without a dense model).
        compressed: report.json's `compressed` figures.
        ratios: report.json's `ratios`.
        timing: the benchmark in full (see `compressor.measure.timing.Timing.to_json`); empty when nothing was timed.
        greedy: report.json's `greedy`: what both models append to some prompts.
        kept_tokens: report.json's `kept_tokens`: what is kept of the tokens of evaluation images.
        kinds: report.json's `kinds`: how well each kind of question is answered.
        seconds: wall-clock time of the verification.
        peak_memory_bytes: highest resident memory of the verifying process.
    """

    checks: tuple[Check, ...]
    dense: dict[str, Any] = field(default_factory=dict)
    compressed: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    greedy: list[dict[str, Any]] = field(default_factory=list)
    kept_tokens: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def passed(self) -> bool:
        """Whether there were checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The failed checks, in order."""
        return [check for check in self.checks if not check.passed]

    @property
    def exit_code(self) -> int:
        """0 verified, 3 a file cannot be read, 4 the artifact is not what it should be."""
        if self.passed:
            return 0
        return ModelError.exit_code if any(c.damaged for c in self.checks) else VerificationError.exit_code

    def error(self) -> ModelError | VerificationError | None:
        """Return the error to raise for a failed verdict, which lists every reason; None when it passed."""
        if self.passed:
            return None
        kind = ModelError if self.exit_code == ModelError.exit_code else VerificationError
        lines = [f"  {check.name}: {check.reason}" for check in self.failures]
        return kind("\n".join([f"verification failed: {len(lines)} of {len(self.checks)} checks", *lines]))

    def to_json(self) -> dict[str, Any]:
        """Return the verdict in report.json's keys, `exit_code` and the full timing beside them; strict JSON."""
        out = {
            "verdict": "passed" if self.passed else "failed",
            "exit_code": self.exit_code,
            "checks": [{**check.to_json(), "damaged": check.damaged} for check in self.checks],
            "dense": self.dense,
            "compressed": self.compressed,
            "ratios": self.ratios,
            "timing": self.timing,
            "greedy": self.greedy,
            "kept_tokens": self.kept_tokens,
            "kinds": self.kinds,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        cleaned: dict[str, Any] = finite(out)
        return cleaned

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """Return the verdict that `to_json` described."""
        kept = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**{**kept, "checks": tuple(Check(**check) for check in data["checks"])})


def finite(value: Any) -> Any:
    """Return a copy with NaN and infinity as None: they have no form in JSON, and their checks failed already."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float | None) -> str:
    return f"{value:.4g}" if value is not None else "nothing"


ALWAYS = (
    "files.seal",
    "files.present",
    "files.unchanged",
    "files.no_strangers",
    "files.links",
    "shapes.weights",
    "precision.stated",
    "graph.task",
    "determinism.bits",
)
"""Checks that an artifact of any kind is put through before it passes, beside some of parity and one of `LOADED`."""
LOADED = ("graph.session", "model.loads")
"""The check that it loads: of a graph, or of safetensors."""


def whole(verdict: Verdict) -> Verdict:
    """Return the verdict if it is a whole one: none passes without the checks that every artifact is put through.

    Raises:
        VerificationError: it passed without them, so something else than this package has written it.
    """
    names = {check.name for check in verdict.checks}
    missing = sorted(set(ALWAYS) - names)
    if not names & set(LOADED):
        missing.append(" or ".join(LOADED))
    if not any(name.startswith("parity.") for name in names):
        missing.append("parity")
    if verdict.passed and missing:
        raise VerificationError(f"the verdict is not to be trusted: it passed without the checks {', '.join(missing)}")
    return verdict
