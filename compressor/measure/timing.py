"""What was measured of two models in turn: seconds per round, and the figures that follow from them.

Figures are medians over rounds, and a speed-up is the quotient of two of them; its interval is a bootstrap over the
rounds, of which each holds both models, so that a slow spell of the machine hits both sides of a ratio. CPU time and
wall time are both kept; with one thread the CPU clock is the one that is reported, because other processes on the
machine do not change it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Series:
    """Seconds of one contender in one phase, one value per round.

    Attributes:
        cpu: CPU seconds of the process per call.
        wall: elapsed seconds per call.
    """

    cpu: list[float]
    wall: list[float]

    def __add__(self, more: Series) -> Series:
        """Return the rounds of both."""
        return Series(self.cpu + more.cpu, self.wall + more.wall)

    def median_ms(self, clock: str) -> float:
        """Return the median latency in milliseconds."""
        return float(np.median(getattr(self, clock))) * 1e3

    def spread(self, clock: str) -> float:
        """Return the interquartile range over the median."""
        low, middle, high = np.quantile(getattr(self, clock), [0.25, 0.5, 0.75])
        return float((high - low) / middle)


@dataclass(frozen=True)
class Phase:
    """One thing that was timed.

    Attributes:
        name: `prefill`, `decode` or `forward`.
        batch: samples per call.
        length: tokens per sample (prefill, forward) or in the cache (decode); 0 for images.
        tokens: tokens (or images) that a call processes.
        clock: `cpu` or `wall`: the one that the reported figures come from.
        ours: seconds of the first model.
        other: seconds of the second model, None when there is none.
    """

    name: str
    batch: int
    length: int
    tokens: int
    clock: str
    ours: Series
    other: Series | None

    def ratios(self, clock: str | None = None) -> list[float]:
        """Return other's time over ours, round by round: above 1, ours is faster."""
        if self.other is None:
            return []
        clock = clock or self.clock
        return [b / a for a, b in zip(getattr(self.ours, clock), getattr(self.other, clock), strict=True)]

    def speedup(self, clock: str | None = None) -> float:
        """Return other's median latency over ours: above 1, ours is faster."""
        assert self.other is not None, "asked for only where two models were timed"
        clock = clock or self.clock
        return self.other.median_ms(clock) / self.ours.median_ms(clock)

    def speedup_range(self) -> tuple[float, float]:
        """Return the quartiles of the rounds' ratios."""
        low, high = np.quantile(self.ratios(), [0.25, 0.75])
        return float(low), float(high)

    def speedup_interval(self) -> tuple[float, float]:
        """Return the ends of the speed-up's 95 % confidence interval: a bootstrap over the rounds."""
        assert self.other is not None, "asked for only where two models were timed"
        ours, other = (np.asarray(getattr(series, self.clock)) for series in (self.ours, self.other))
        drawn = np.random.default_rng(0).integers(0, len(ours), (_RESAMPLES, len(ours)))
        ratios = np.median(other[drawn], axis=1) / np.median(ours[drawn], axis=1)
        low, high = np.quantile(ratios, [0.025, 0.975])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Return figures with units in their names, for reports."""
        out: dict[str, Any] = {"name": self.name, "batch": self.batch, "length": self.length, "clock": self.clock}
        for who, series in (("ours", self.ours), ("other", self.other)):
            if series is not None:
                latency = series.median_ms(self.clock)
                out[who] = {
                    "latency_ms": latency,
                    "latency_cpu_ms": series.median_ms("cpu"),
                    "latency_wall_ms": series.median_ms("wall"),
                    "per_second": self.tokens / latency * 1e3,
                    "spread": series.spread(self.clock),
                }
        if self.other is not None:
            out["speedup"] = self.speedup()
            out["speedup_interval"] = list(self.speedup_interval())
            out["speedup_quartiles"] = list(self.speedup_range())
            out["speedup_wall"] = self.speedup("wall")
        return out


@dataclass(frozen=True)
class Footprint:
    """What a model costs to hold.

    Attributes:
        file_bytes: model and weight files on disk.
        memory_bytes: peak resident memory that loading and running it adds to a fresh process; None if not measured.
    """

    file_bytes: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Timing:
    """The result of `compressor.measure.benchmark.compare`.

    Attributes:
        threads: intra-op threads of both.
        rounds: interleaved rounds per phase.
        phases: one entry per phase and batch size.
        ours: footprint of the first model.
        other: footprint of the second, if there is one.
    """

    threads: int
    rounds: int
    phases: list[Phase]
    ours: Footprint
    other: Footprint | None

    def latency_ms(self, side: str = "ours") -> dict[str, float]:
        """Return phase -> median milliseconds at the first batch size; `side` is `ours` or `other`."""
        return {p.name: getattr(p, side).median_ms(p.clock) for p in self._first() if getattr(p, side) is not None}

    def speedup(self) -> dict[str, float]:
        """Return phase -> speed-up of ours over the other at the first batch size."""
        return {p.name: p.speedup() for p in self._first() if p.other is not None}

    def speedup_interval(self) -> dict[str, list[float]]:
        """Return phase -> both ends of the 95 % confidence interval of its speed-up, at the first batch size."""
        return {p.name: list(p.speedup_interval()) for p in self._first() if p.other is not None}

    def _first(self) -> list[Phase]:
        batch = self.phases[0].batch
        return [p for p in self.phases if p.batch == batch]

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON-able dict."""
        return {
            "threads": self.threads,
            "rounds": self.rounds,
            "phases": [p.to_json() for p in self.phases],
            "latency_ms": {"ours": self.latency_ms(), "other": self.latency_ms("other")},
            "speedup": self.speedup(),
            "footprint": {"ours": asdict(self.ours), "other": asdict(self.other) if self.other else None},
        }
