"""Progress of a process of its own: it writes what it does as lines of JSON, and the process that asked tells it."""

from __future__ import annotations

import json
from typing import TextIO

from compressor.machine.progress import Progress

_CALLS = ("stage", "advance", "info")


class WrittenProgress:
    """Writes every call as a line of JSON."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def expect(self, stages: int) -> None:
        """Ignore the number: the stages are a part of the asking process's own."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Write that a stage begins."""
        self._write("stage", name, total)

    def advance(self, note: str = "") -> None:
        """Write that a step is done."""
        self._write("advance", note)

    def info(self, message: str) -> None:
        """Write the message."""
        self._write("info", message)

    def _write(self, *call: str | int | None) -> None:
        self._stream.write(f"{json.dumps(call)}\n")
        self._stream.flush()


def retell(line: str, progress: Progress) -> None:
    """Tell a progress what a line of a `WrittenProgress` says; other lines, such as a library prints, say nothing."""
    try:
        name, *given = json.loads(line)
        if name in _CALLS:
            getattr(progress, name)(*given)
    except (ValueError, TypeError, RecursionError):
        return
