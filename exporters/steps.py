"""How far an export is, for whoever waits: a graph is traced, put in order, and its weights are written in tenths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Advance: TypeAlias = Callable[[str], None]
"""Told what has been done."""

_TENTHS = 10
STEPS = {"onnx": 2 + _TENTHS, "ort": 3 + _TENTHS, "safetensors": _TENTHS}
"""How often an export to each format tells that it has got further."""


def silent(done: str) -> None:
    """Tell nobody."""


class WeightSteps:
    """Tells, tenth by tenth, how much of the weights has been written."""

    def __init__(self, total: int, advance: Advance) -> None:
        """Take the bytes of all weights, and whom to tell."""
        self._total, self._advance = total, advance
        self._written = self._told = 0

    def written(self, count: int) -> None:
        """Count `count` more bytes."""
        self._written += count
        self._tell(_TENTHS * self._written // self._total)

    def finish(self) -> None:
        """Count what is left: small weights are written with the graph and not told."""
        self._tell(_TENTHS)

    def _tell(self, tenths: int) -> None:
        for done in range(self._told + 1, tenths + 1):
            self._advance(f"{100 * done // _TENTHS} % of the weights")
        self._told = max(self._told, tenths)
