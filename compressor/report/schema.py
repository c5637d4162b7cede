"""The model of `report.json`, version 1: what a run writes down, and what every view of it may rely on.

`build_report` makes a report, `clean_report` makes any report strict JSON, `check_report` turns a dictionary into typed
objects and names all its problems at once. Readers ignore keys that they do not know; the keys below are stable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from compressor.errors import CompressorError, VerificationError
from compressor.report.kept_schema import KeptTokens, Part
from compressor.report.pass_schema import PassEntry
from compressor.report.sweep_schema import Sweep

VERSION = 1


class Model(Part):
    """The model that was compressed.

    Attributes:
        id: hub id or folder, as the recipe or the command line gave it.
        parameters: parameters of the dense model, tied weights counted once.
        task: `text-generation`, `feature-extraction`, `image-classification`, ...
    """

    id: str
    parameters: int | None = None
    task: str = ""


class Bound(Part):
    """What a check requires: at least `min`, at most `max`, exactly `equal`; those that are None do not bind."""

    min: float | None = None
    max: float | None = None
    equal: bool | int | float | str | None = None


class Check(Part):
    """One thing that was verified.

    Attributes:
        name: dotted name, most general part first, such as `parity.logits.max_abs`.
        value: what was measured; None when it could not be measured or was not finite.
        bound: what was required; None when the check is a plain yes or no.
        passed: whether the artifact satisfies it.
        unit: unit of value and bound, such as `logit`, `ms`, `bytes`; empty for a plain number.
        reason: for a failed check, what is wrong, in one sentence; for a passed one, why it was not judged.
        damaged: whether it failed because a file is missing or cannot be read.
    """

    name: str
    value: bool | int | float | str | None = None
    bound: Bound | None = None
    passed: bool
    unit: str = ""
    reason: str = ""
    damaged: bool = False

    @model_validator(mode="before")
    @classmethod
    def _absent_is_default(cls, data: Any) -> Any:
        """Treat null for a text field as absent."""
        if isinstance(data, dict):
            return {k: v for k, v in data.items() if not (v is None and k in ("unit", "reason"))}
        return data


class Figures(Part):
    """The figures of one artifact, dense or compressed.

    Attributes:
        parameters: number of parameters.
        bytes: bytes of the weights and the graph on disk.
        flops: floating-point operations of one forward pass over the shape that the run timed.
        metrics: quality by metric name, measured on the exported artifact.
        samples: windows, pairs, sentences or labelled inputs that quality was measured on.
        intervals: [low, high] of metrics, and in `compressed` of their changes from dense (`perplexity_increase`, ...):
            95 % confidence, by bootstrap over the samples.
        latency_ms: median milliseconds by phase (`prefill` and `decode`, or `forward`), measured side by side.
    """

    parameters: int | None = None
    bytes: int | None = None
    flops: int | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    samples: int | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    latency_ms: dict[str, float | None] = Field(default_factory=dict)


class Ratios(Part):
    """Compressed over dense; the speed-up is dense over compressed, so more than 1 is faster.

    Attributes:
        bytes: of the files.
        parameters: of the models.
        flops: of a forward pass.
        speedup: quotient of the median latencies, by phase.
        speedup_interval: [low, high] of the speed-up by phase: 95 % confidence, by bootstrap over the rounds.
    """

    bytes: float | None = None
    parameters: float | None = None
    flops: float | None = None
    speedup: dict[str, float | None] = Field(default_factory=dict)
    speedup_interval: dict[str, tuple[float, float]] = Field(default_factory=dict)


class Continuation(Part):
    """How both models go on, greedily, from the beginning of one evaluation sample.

    Attributes:
        prompt: that beginning.
        dense: the text that the dense model appends.
        compressed: the text that the artifact appends.
        tokens: how many tokens the longer one has.
        differs_at: the first token in which they differ, counted from 1; None where they are equal.
    """

    prompt: str
    dense: str
    compressed: str
    tokens: int
    differs_at: int | None = None


class QuestionKind(Part):
    """How well questions of one kind about images are answered.

    Attributes:
        questions: how many there are.
        ours: share of right answers.
        dense: the same of the dense model.
    """

    questions: int
    ours: float
    dense: float | None = None


class Report(Part):
    """The whole of `report.json`.

    Attributes:
        greedy: of a model that generates text, how it goes on from some prompts.
        kept_tokens: of a model in which image tokens go, which of them are left.
        kinds: of a model that is asked questions about images, how well those of each kind are answered.
        sweep: what other values of an option would have given.
        notes: what the reader should know before the figures are believed.
        artifact: the artifact folder, known to whoever made or verified it; not in the file, which lies in the folder.
    """

    version: Literal[1]
    verdict: Literal["passed", "failed"]
    model: Model
    passes: list[PassEntry] = Field(default_factory=list)
    dense: Figures = Field(default_factory=Figures)
    compressed: Figures = Field(default_factory=Figures)
    ratios: Ratios = Field(default_factory=Ratios)
    checks: list[Check]
    seconds: dict[str, float | None] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    greedy: list[Continuation] = Field(default_factory=list)
    kept_tokens: KeptTokens | None = None
    kinds: dict[str, QuestionKind] = Field(default_factory=dict)
    sweep: Sweep | None = None
    artifact: Path | None = None

    @model_validator(mode="after")
    def _verdict_follows_from_checks(self) -> Report:
        """A verdict that its own checks contradict, or that rests on none, is not a verdict."""
        if self.verdict == "passed" and not self.checks:
            raise ValueError("verdict is 'passed' but there are no checks")
        if self.verdict == "passed" and (failed := self.failed):
            raise ValueError(f"verdict is 'passed' but these checks failed: {', '.join(c.name for c in failed)}")
        return self

    @property
    def failed(self) -> list[Check]:
        """The checks that failed, in their order."""
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether the artifact was verified."""
        return self.verdict == "passed"

    @property
    def metrics(self) -> dict[str, float | None]:
        """The quality of the artifact by metric name; that of the dense model is in `dense.metrics`."""
        return self.compressed.metrics

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, with the keys that it was given."""
        return self.model_dump(mode="json", exclude_unset=True)


def check_report(data: Mapping[str, Any], *, source: str = "report.json") -> Report:
    """Validate a report and return it as typed objects.

    Args:
        data: the dictionary, as read from JSON or as made by the pipeline.
        source: how to name it in the error.

    Raises:
        VerificationError: the report is not a version 1 report, or contradicts itself; the message lists all problems.
    """
    if not isinstance(data, Mapping):
        raise VerificationError(f"{source}: expected a JSON object, got {type(data).__name__}")
    version = data.get("version")
    if type(version) is not int or version != VERSION:
        raise VerificationError(
            f"{source}: version: expected {VERSION}, got {version!r}",
            hint="Read it with the release of compressor that wrote it, or run `compressor verify` on the artifact.",
        )
    try:
        return Report.model_validate(dict(data))
    except ValidationError as error:
        lines = [f"  {_where(p['loc'])}{p['msg'].removeprefix('Value error, ')}" for p in error.errors()]
        problems = list(dict.fromkeys(lines))
        head = f"{source}: {len(problems)} problem{'s' if len(problems) != 1 else ''}"
        raise VerificationError("\n".join([head, *problems])) from error


def clean_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that strict JSON can hold: numpy scalars, paths and tuples converted, no NaN and no infinity.

    A figure that is not finite becomes null, and the verdict becomes `failed`: a check with such a value fails with the
    reason, and any other place gets a failed check `finite.<key>` of its own. Call it before the exit code is decided.

    Raises:
        CompressorError: a value that JSON has no form for.
    """
    places: list[tuple[str, float]] = []
    result: dict[str, Any] = _plain(report, "", places)
    if not places:
        return result
    checks: list[dict[str, Any]] = [dict(check) for check in result.get("checks", [])]
    for place, value in places:
        own = next((c for i, c in enumerate(checks) if place.startswith(f"checks[{i}].")), None)
        if own is None:
            checks.append({"name": f"finite.{place}", "value": None, "bound": None, "passed": False, "unit": ""})
            own = checks[-1]
        own["passed"] = False
        own["reason"] = own.get("reason") or f"{place} is {value}, not a finite number"
    return {**result, "checks": checks, "verdict": "failed"}


def build_report(
    *,
    model: Mapping[str, Any],
    dense: Mapping[str, Any],
    compressed: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    passes: Sequence[Mapping[str, Any]] = (),
    speedup: Mapping[str, float] | None = None,
    speedup_interval: Mapping[str, Sequence[float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    peak_memory_bytes: int | None = None,
    environment: Mapping[str, Any] | None = None,
    greedy: Sequence[Mapping[str, Any]] = (),
    kept_tokens: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a version 1 report together: the ratios and the verdict follow from the rest.

    Args:
        model: `id`, `parameters`, `task`.
        dense: figures of the dense model (see `Figures`).
        compressed: figures of the artifact.
        checks: what was verified (see `Check`); the verdict is `passed` when there is one and none failed.
        passes: what each pass did (see `PassEntry`).
        speedup: measured speed-up by phase; by default the ratio of the two latencies.
        speedup_interval: both ends of its 95 % confidence interval by phase, where it is known.
        seconds: wall-clock time by stage, with `total`.
        peak_memory_bytes: highest resident memory of the run.
        environment: versions, processor, threads.
        greedy: how both models go on from some prompts (see `Continuation`).
        kept_tokens: which image tokens are left (see `KeptTokens`); none are known where it is empty.
        kinds: how well each kind of question about images is answered (see `QuestionKind`); none where it is empty.
        sweep: what other values of an option give (see `Sweep`); None where the recipe has no sweep.

    Raises:
        VerificationError: the parts do not make a valid report.
        CompressorError: a value that JSON has no form for.
    """
    verdict = "passed" if checks and all(check["passed"] for check in checks) else "failed"
    report = clean_report(
        {
            "version": VERSION,
            "verdict": verdict,
            "model": model,
            "passes": passes,
            "dense": dense,
            "compressed": compressed,
            "ratios": {
                **build_ratios(dense, compressed, speedup),
                "speedup_interval": dict(speedup_interval or {}),
            },
            "checks": checks,
            "seconds": seconds or {},
            "peak_memory_bytes": peak_memory_bytes,
            "environment": environment or {},
            "greedy": greedy,
            **({"kept_tokens": kept_tokens} if kept_tokens else {}),
            **({"kinds": kinds} if kinds else {}),
            **({"sweep": sweep} if sweep else {}),
        }
    )
    check_report(report)
    return report


def build_ratios(
    dense: Mapping[str, Any], compressed: Mapping[str, Any], speedup: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return `ratios`: compressed over dense for sizes, dense over compressed for time; None where unknown."""
    if speedup is None:
        before, after = dense.get("latency_ms") or {}, compressed.get("latency_ms") or {}
        speedup = {p: r for p in before if p in after and (r := quotient(before[p], after[p])) is not None}
    keys = ("bytes", "parameters", "flops")
    return {**{key: quotient(compressed.get(key), dense.get(key)) for key in keys}, "speedup": dict(speedup)}


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """Return the quotient, or None where a side is missing or not finite, or the denominator is zero."""
    if numerator is None or not denominator or not math.isfinite(numerator) or not math.isfinite(denominator):
        return None
    return numerator / denominator


def _where(location: Iterable[int | str]) -> str:
    """Return `checks[0].passed: ` for a pydantic location, without the names of union members."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in ("bool", "int", "float", "str"):
            text += f".{part}" if text else part
    return f"{text}: " if text else ""


def _plain(value: Any, place: str, places: list[tuple[str, float]]) -> Any:
    """Convert `value` to JSON types; note where a number was not finite."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{place}.{k}" if place else str(k), places) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{i}]", places) for i, item in enumerate(value)]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        if math.isfinite(number):
            return number
        places.append((place, number))
        return None
    if isinstance(value, PurePath):
        return value.as_posix()
    if callable(item := getattr(value, "item", None)) and not getattr(value, "shape", ()):
        return _plain(item(), place, places)  # zero-dimensional arrays and numpy booleans
    raise CompressorError(f"report: {place}: a {type(value).__name__} has no form in JSON")
