"""Giving freed memory back while a model streams past."""

from __future__ import annotations

from compressor.machine.memory import trim_heap

_EVERY = 16 * 1024 * 1024


class PeriodicTrim:
    """Gives the heap back whenever another 16 MiB were read: tensors come and go, and leave holes in it."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._pending = 0

    def read(self, count: int) -> None:
        """Count `count` more bytes, read and no longer needed."""
        self._pending += count
        if self._pending > _EVERY:
            self._pending = 0
            trim_heap()
