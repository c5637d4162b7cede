"""Giving freed memory back while a model streams past."""

from __future__ import annotations

from compressor.machine.memory import trim_heap

_EVERY = 16 * 1024 * 1024


class PeriodicTrim:
    """Returns free memory to the system after every 16 MiB read: tensors that come and go fragment the heap."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._pending = 0

    def read(self, count: int) -> None:
        """Count `count` more bytes, read and no longer needed."""
        self._pending += count
        if self._pending > _EVERY:
            self._pending = 0
            trim_heap()
