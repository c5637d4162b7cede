"""Bounds: what the recipe asks and what no artifact may fall below, on measured quality, size and speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compressor.errors import UsageError, did_you_mean
from compressor.measure.scores import Quality
from compressor.recipe import BOUNDS, METRICS
from compressor.verification.verdict import Bounds, Check, bounded, yes

DEFAULTS: Bounds = {
    "perplexity_increase": {"max": 2.0},
    "top1": {"min": 0.3},
    "cosine": {"min": 0.7},
    "rank": {"min": 0.7},
    "relative_error": {"max": 1.0},
}
"""Floors for garbage: far below any useful model, and replaced by the recipe's own bound of the same name."""

WEIGHT_ONLY: Bounds = {
    "perplexity_increase": {"max": 0.02},
    "kl": {"max": 0.01},
    "top1": {"min": 0.93},
    "rank": {"min": 0.95},
}
"""What weights of 4 or 8 bits alone may cost, against dense, where the recipe bounds no quality.

4-bit weights in groups of 32 were seen at 0.002 to 0.007, 0.0015 to 0.0042 nats, and 0.951 to 0.973.
"""

STEP = "quantization_step"
"""Key of compression.json: perplexity after the quantize passes over that before them, minus 1 (PyTorch, same text)."""

_JUDGING = ("perplexity", "perplexity_increase", "kl", "top1", "rank", "relative_error")
_ACCEPT = "what such weights cost; bound it under verify to accept more"
_MIN_HITS = 10
_UNIFORM = 0.9999


def check_bound_names(bounds: Bounds) -> None:
    """Refuse bounds that nothing measures.

    Raises:
        UsageError: an unknown name, or a bound that is not min and/or max.
    """
    for name, limits in bounds.items():
        if name not in BOUNDS:
            raise UsageError(
                f"verify.{name}: unknown bound{did_you_mean(name, BOUNDS)}", hint="Allowed: " + ", ".join(BOUNDS)
            )
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
    if set(_JUDGING) & set(bounds):
        return []
    if alone:
        return [_check("quality", f"weight_only.{name}", values[name], limits, _ACCEPT)
                for name, limits in WEIGHT_ONLY.items() if name in values]  # fmt: skip
    if step is None:
        return []
    return [_check("quality", f"weight_only.{STEP}", step, WEIGHT_ONLY["perplexity_increase"], _ACCEPT)]


def check_bounds(values: Mapping[str, float], bounds: Bounds) -> list[Check]:
    """Check measured values against the recipe's bounds and the default floors."""
    checks = []
    for name, limits in bounds.items():
        why = "the recipe bounds it, but nothing here measures it" if name not in values else "the recipe's bound"
        checks.append(_check("bounds", name, values.get(name), limits, why))
    for name, limits in DEFAULTS.items():
        if name in values and name not in bounds:
            checks.append(_check("quality", name, values[name], limits, "no useful model is that far from dense"))
    return checks


def _check(group: str, name: str, value: float | None, limits: Mapping[str, float], why: str) -> Check:
    unit = BOUNDS[name].unit if name in BOUNDS else ""
    return bounded(f"{group}.{name}", value, least=limits.get("min"), most=limits.get("max"), unit=unit, why=why)


def check_sanity(quality: Quality, bounds: Bounds) -> list[Check]:
    """Check what every working model has: finite outputs that depend on the input and are not all equally likely."""
    checks = [
        yes("quality.finite", quality.finite, "outputs on the evaluation data hold NaN or infinity"),
        yes("quality.varies", quality.varies, "the output is the same for every input"),
    ]
    if quality.entropy is not None:
        why = "all outcomes are equally likely: the model says nothing"
        checks.append(bounded("quality.entropy", quality.entropy, most=_UNIFORM, why=why))
    for name in ("accuracy", "f1"):
        dense = quality.dense.get(name)
        judged = dense is not None and dense * quality.samples >= _MIN_HITS
        if dense is not None and judged and not {name, f"{name}_drop"} & set(bounds):
            why = f"less than half of the dense model's {METRICS[name].label} is left"
            checks.append(bounded(f"quality.{name}", quality.ours.get(name), least=dense / 2, why=why))
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


def check_gain(values: Mapping[str, float], best: float | None, passes: Sequence[str], *, timed: bool) -> list[Check]:
    """Refuse artifacts whose compression brought nothing.

    Args:
        values: measured quality, `size_ratio` and `parameters_ratio`.
        best: the largest speed-up of any phase, upper quartile of its rounds: the benefit of the doubt; None where the
            speed here is not that of the runtime which the artifact is for.
        passes: what was applied; a plain export (none) owes no gain.
        timed: whether speed was measured against dense.

    Returns:
        `gain.dominated`: slower and worse than dense; `gain.effect`: neither smaller nor faster.
    """
    if not passes:
        return []
    checks = []
    size = values.get("size_ratio", 1.0)
    if timed and best is not None:
        dominated = best < 0.95 and worse_than_dense(values)
        reason = f"slower (at best {best:.2f} times dense's speed) and worse than dense: nobody wants it"
        checks.append(yes("gain.dominated", not dominated, reason, value=best))
    if size >= 0.999 and (best is None or best < 1.0) and timed:
        reason = f"{', '.join(passes)} made nothing smaller ({size:.3f} of dense's bytes) and nothing faster"
        checks.append(yes("gain.effect", False, reason, value=size))
    elif timed:
        checks.append(yes("gain.effect", True, "", value=size))
    return checks
