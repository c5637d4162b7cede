"""Letting go of mapped files while a model streams past."""

from __future__ import annotations

from collections.abc import Callable

EVERY = 128 * 1024 * 1024


class PeriodicRelease:
    """Calls `release` whenever another 128 MiB were read: mapped pages count as our memory until then."""

    def __init__(self, release: Callable[[], None]) -> None:
        """Take what unmaps; it must be safe to read on afterwards."""
        self._release = release
        self._pending = 0

    def read(self, count: int) -> None:
        """Count `count` more bytes, read and no longer needed."""
        self._pending += count
        if self._pending > EVERY:
            self._pending = 0
            self._release()
