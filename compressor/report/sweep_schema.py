"""The part of `report.json` that says what other values of one option would have given."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from compressor.report.kept_schema import Part


class SweepPoint(Part):
    """The model with one value of the option, exported and measured as the artifact is.

    Attributes:
        value: of the option.
        chosen: whether it is the artifact itself.
        passed: whether its export was verified; the recipe's bounds are not part of that.
        flops: over the dense model's.
        latency_ms: median milliseconds by phase, measured beside the dense model.
        speedup: dense over this, by phase.
        metrics: quality by metric name.
    """

    value: Any = None
    chosen: bool = False
    passed: bool
    flops: float | None = None
    latency_ms: dict[str, float | None] = Field(default_factory=dict)
    speedup: dict[str, float | None] = Field(default_factory=dict)
    metrics: dict[str, float | None] = Field(default_factory=dict)


class Sweep(Part):
    """One option of one pass at several values.

    Attributes:
        option: as the recipe names it, `evit.keep`.
        points: one for each value, the artifact's among them.
    """

    option: str
    points: list[SweepPoint]
