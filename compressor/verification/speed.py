"""Whether the speed measured here says anything of the processor that an artifact is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.machine.processor import target_for
from compressor.recipe import BOUNDS
from compressor.storage.processor import stated_target
from compressor.verification.verdict import Bounds, Check, not_judged

_TIMED = tuple(name for name in BOUNDS if name.startswith(("speedup", "latency_")))
_GAINS = ("gain.dominated", "gain.effect")


def elsewhere(manifest: Mapping[str, Any]) -> str | None:
    """Return why speed is not judged: the artifact is for processors of another kind; None where it is."""
    target, here = stated_target(manifest), target_for("auto")
    if target is None or target == here:
        return None
    return (
        f"the artifact is for {target} (export.target), and this machine is {here}, whose speed says nothing of that;"
        " on the device, run: compressor verify ARTIFACT --against MODEL"
    )


def without_speed(bounds: Bounds, why: str, *, gains: bool) -> tuple[Bounds, list[Check]]:
    """Return the bounds that are left without those on measured time, and a check for each judgement that is not made.

    Args:
        bounds: the recipe's.
        why: as `elsewhere` says.
        gains: whether `gain.*` would be judged on the target.
    """
    timed = [name for name in bounds if name in _TIMED]
    names = [*(f"bounds.{name}" for name in timed), *(_GAINS if gains else ())]
    left = {name: limits for name, limits in bounds.items() if name not in (*timed, *_GAINS)}
    return left, [not_judged(name, why) for name in names]
