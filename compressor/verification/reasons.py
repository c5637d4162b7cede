"""Why a judgement failed, as people say it: what happened, what is allowed, what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compressor.passes import methods
from compressor.recipe import BOUNDS, METRICS
from compressor.verification.verdict import Check

_MILDER: Mapping[str, str] = {
    "quantize": "groups of 32, gptq, or 8 bits",
    "structure": "a smaller sparsity or reduction, or more calibration samples",
    "tokens": "fewer tokens merged in each layer",
}
"""Family of passes -> what costs less quality."""
_MORE_BITS = "smaller groups, or more bits (bits: auto spends them where they count)"
"""The same for rounding to few bits that has compensated its errors already."""
_SMALLER = "fewer bits, larger groups, or a larger sparsity"
_FASTER = "a larger sparsity, or 8-bit weights and inputs; on a busy machine, measure again"
_FALLBACK = "weaker settings"


def explained(check: Check, ours: Mapping[str, float], dense: Mapping[str, float], passes: Sequence[str]) -> Check:
    """Return a failed check of a measured figure with a reason that says what happened; others as they are.

    Args:
        check: of the groups `bounds` and `quality`.
        ours: quality metrics of the artifact, by name.
        dense: those of the dense model.
        passes: methods that were applied.
    """
    group, _, rest = check.name.partition(".")
    name = rest.removeprefix("weight_only.")
    value = check.value
    if check.passed or group not in ("bounds", "quality") or name not in BOUNDS or not isinstance(value, int | float):
        return check
    bound, limits = BOUNDS[name], check.bound or {}
    if bound.metric and bound.change and bound.metric in ours and bound.metric in dense:
        happened = _change(name, float(value), ours[bound.metric], dense[bound.metric])
    else:
        happened = f"{_label(name)} is {_figure(name, value)}"
    allowed = " and ".join(
        f"{_amount(name, limit)} is {word}"
        for side, word in (("max", "allowed"), ("min", "required"))
        if (limit := limits.get(side)) is not None and not isinstance(limit, str)
    )
    # Behind it stands under which key a gate takes another bound.
    key = f" (verify.{check.name} takes another bound)" if group == "quality" else ""
    return replace(check, reason=f"{happened}; {allowed}{key}. Try {_advice(name, passes)}")


def _change(name: str, value: float, ours: float, dense: float) -> str:
    """Return what became of a metric: `perplexity rose by 141 %, from 1.655 to 3.992`."""
    moved = value if BOUNDS[name].change == "increase" else -value
    verb = "rose" if moved > 0 else "fell"
    return f"{_label(name)} {verb} by {_amount(name, abs(value))}, from {dense:.4g} to {ours:.4g}"


def _amount(name: str, value: float) -> str:
    """Return a value or limit of a bound: an increase in percent, any other as it is, with its unit."""
    if BOUNDS[name].change == "increase":
        return f"{100 * value:.3g} %"
    return _figure(name, value)


def _figure(name: str, value: float) -> str:
    return f"{value:.4g} {BOUNDS[name].unit}".rstrip()


def _label(name: str) -> str:
    """Return what a bound is about: the metric as people call it, or the bound's own name in words."""
    metric = BOUNDS[name].metric
    return METRICS[metric].label if metric in METRICS else name.replace("_", " ")


def _advice(name: str, passes: Sequence[str]) -> str:
    bound = BOUNDS[name]
    if bound.phase or name == "speedup":
        return _FASTER
    if bound.metric is None:
        return _SMALLER
    known = methods()
    families = dict.fromkeys(known[entry].family for entry in passes if entry in known)
    milder = {**_MILDER, "quantize": _MORE_BITS} if {"gptq", "rsq"} & set(passes) else _MILDER
    return ", or ".join(milder[family] for family in families if family in milder) or _FALLBACK
