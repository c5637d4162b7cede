"""Bounds: what the recipe asks and what no artifact may fall below, on measured quality, size and speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compressor.errors import UsageError, did_you_mean
from compressor.measure.scores import Quality
from compressor.recipe import BOUNDS, GATES, METRICS
from compressor.verification.verdict import Bounds, Check, bounded, not_judged, yes

STEP = "quantization_step"
"""Key of compression.json: perplexity after the quantize passes over that before them, minus 1 (PyTorch, same text)."""

_JUDGING = ("perplexity", "perplexity_increase", "kl", "top1", "rank", "relative_error")
_ACCEPT = "more than such weights cost"
_MIN_HITS = 10
_SMALLER = 0.999
_FLOORS = [name for name, gate in GATES.items() if gate.limits and name.removeprefix("quality.") in BOUNDS]
_WEIGHTS = "quality.weight_only."
_OFF = "the recipe says false"


def check_bound_names(bounds: Bounds) -> None:
    """Refuse bounds that nothing measures.

    Raises:
        UsageError: an unknown name, or a bound that is not min and/or max.
    """
    for name, limits in bounds.items():
        known = [*BOUNDS, *GATES]
        if name not in known:
            raise UsageError(
                f"verify.{name}: unknown bound{did_you_mean(name, known)}", hint="Allowed: " + ", ".join(known)
            )
        if name in GATES and not limits:
            continue
        if not limits or set(limits) - {"min", "max"} or any(not math.isfinite(v) for v in limits.values()):
            raise UsageError(f"verify.{name}: expected min and/or max with finite numbers, got {dict(limits)}")


def derived(ours: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of ours with the differences to dense that bounds may name."""
    values = dict(ours)
    for name, bound in BOUNDS.items():
        metric = bound.metric
        if metric and bound.change and metric in ours and metric in dense:
            values[name] = bound.value(ours[metric], dense[metric])
    return values


def check_weight_only(values: Mapping[str, float], bounds: Bounds, *, alone: bool, step: float | None) -> list[Check]:
    """Check a decoder with weight-only quantization whose recipe bounds no quality (decision 8).

    Args:
        values: measured on the artifact, against dense.
        bounds: the recipe's; any on perplexity, KL divergence or agreement takes the place of these checks.
        alone: whether nothing but quantization was done. Other passes cost quality of their own, and then only the
            quantization step is judged.
        step: what the quantize passes added to perplexity, as `STEP` has it; None where it was not measured.
    """
    names = [name for name in GATES if name.startswith(_WEIGHTS) and (name != _WEIGHTS + STEP) is alone]
    if set(_JUDGING) & set(bounds):  # what the recipe names by itself is judged all the same
        names = [name for name in names if name in bounds]
    found = values if step is None else {**values, STEP: step}
    return [_gated(name, found[short], bounds, _ACCEPT)
            for name in names if (short := name.removeprefix(_WEIGHTS)) in found]  # fmt: skip


def check_bounds(values: Mapping[str, float], bounds: Bounds) -> list[Check]:
    """Check measured values against the recipe's bounds and the default floors."""
    checks = []
    for name in [name for name in bounds if name not in GATES]:
        why = "the recipe bounds it, but nothing here measures it" if name not in values else "the recipe's bound"
        checks.append(_check(f"bounds.{name}", values.get(name), bounds[name], why, BOUNDS[name].unit))
    for name in _FLOORS:
        short = name.removeprefix("quality.")
        if short in values and (short not in bounds or name in bounds):
            checks.append(_gated(name, values[short], bounds, "no useful model is that far from dense"))
    return checks


def check_gates_met(checks: Sequence[Check], bounds: Bounds) -> list[Check]:
    """Fail the bounds on gates that nothing was held against: no key of a recipe is without effect."""
    judged = {check.name for check in checks}
    why = "the recipe bounds it, but it does not apply to this artifact"
    return [_check(name, None, limits, why) for name, limits in bounds.items()
            if name in GATES and limits and name not in judged]  # fmt: skip


def _check(name: str, value: float | None, limits: Mapping[str, float], why: str, unit: str = "") -> Check:
    return bounded(name, value, least=limits.get("min"), most=limits.get("max"), unit=unit, why=why)


def _gated(
    name: str, value: float | None, bounds: Bounds, why: str, default: Mapping[str, float] | None = None
) -> Check:
    """Return the check of a gate with a bound: the recipe's, else `default`, else the gate's own."""
    limits = bounds.get(name, default or GATES[name].limits or {})
    if not limits:
        return not_judged(name, _OFF, value)
    return _check(name, value, limits, f"{why}; bound it under verify.{name}")


def _yes(name: str, passed: bool, reason: str, bounds: Bounds, value: float | None = None) -> Check:
    """Return the check of a gate that says yes or no."""
    return not_judged(name, _OFF, value) if name in bounds else yes(name, passed, reason, value=value)


def check_sanity(quality: Quality, bounds: Bounds) -> list[Check]:
    """Check what every working model has: finite outputs that depend on the input and are not all equally likely."""
    checks = [
        _yes("quality.finite", quality.finite, "outputs on the evaluation data hold NaN or infinity", bounds),
        _yes("quality.varies", quality.varies, "the output is the same for every input", bounds),
    ]
    if quality.entropy is not None:
        checks.append(_gated("quality.entropy", quality.entropy, bounds, "all outcomes are equally likely"))
    for name in ("accuracy", "f1"):
        dense, key = quality.dense.get(name), f"quality.{name}"
        judged = dense is not None and dense * quality.samples >= _MIN_HITS
        if key in bounds or (judged and not {name, f"{name}_drop"} & set(bounds)):
            why = f"less than half of the dense model's {METRICS[name].label} is left"
            checks.append(_gated(key, quality.ours.get(name), bounds, why, {"min": (dense or 0.0) / 2}))
    return checks


def worse_than_dense(values: Mapping[str, float]) -> bool:
    """Tell whether quality is below dense beyond noise; NaN counts as worse.

    Outputs that differ from dense count as worse, unless every metric of the task itself is clearly better.
    """
    drops = ("perplexity_increase", "spearman_drop", "pearson_drop", "accuracy_drop", "f1_drop")
    tasks = dict.fromkeys(drops, 1e-3)
    judged = [values[name] < -limit for name, limit in tasks.items() if name in values]
    if judged and all(judged):
        return False
    limits = {**tasks, "kl": 1e-5, "relative_error": 1e-2}
    floors = {"cosine": 0.9999, "top1": 0.999, "rank": 0.9999}
    return any(not values[n] <= limit for n, limit in limits.items() if n in values) or any(
        not values[n] >= floor for n, floor in floors.items() if n in values
    )


def check_gain(
    values: Mapping[str, float],
    speed: tuple[float, float] | None,
    passes: Sequence[str],
    bounds: Bounds,
    *,
    timed: bool,
) -> list[Check]:
    """Refuse artifacts whose compression brought nothing.

    Args:
        values: measured quality, `size_ratio` and `parameters_ratio`.
        speed: confidence interval of the speed-up of the phase that gained most; the upper end counts, so timing noise
            refuses nothing. None where the speed here is not that of the runtime which the artifact is for.
        passes: what was applied; a plain export (none) owes no gain.
        bounds: the recipe's, which may switch both off.
        timed: whether speed was measured against dense.

    Returns:
        `gain.dominated`: not smaller, slower and worse than dense; `gain.effect`: neither smaller nor faster.
    """
    if not passes or not timed:
        return []
    size = values.get("size_ratio", 1.0)
    smaller, slower = size < _SMALLER, speed is not None and speed[1] < 1.0
    checks = []
    if speed is not None:
        reason = (
            f"worse than dense, slower ({speed[0]:.2f} to {speed[1]:.2f} times its speed) and not smaller ({size:.3f}"
            " of its bytes): nobody wants it; another method or weaker settings may"
        )
        dominated = not smaller and slower and worse_than_dense(values)
        checks.append(_yes("gain.dominated", not dominated, reason, bounds, speed[1]))
    reason = f"{', '.join(passes)} made nothing smaller ({size:.3f} of dense's bytes) and nothing faster"
    effect = smaller or not (slower or speed is None)
    return [*checks, _yes("gain.effect", effect, reason, bounds, size)]
