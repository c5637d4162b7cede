"""Memory of the running process. Imports no numerical library, so that measuring does not change what is measured."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import resource
import sys
from collections.abc import Callable
from pathlib import Path

_PROC = Path("/proc/self")


def peak_memory() -> int:
    """Return the highest resident memory of this process so far, bytes.

    Linux tells it of the program itself; what `getrusage` tells there may be the parent's, inherited over fork.
    """
    status = _PROC / "status"
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> int:
    """Let the highest resident memory start anew, where the system can (Linux); return the present one, bytes."""
    import psutil

    with contextlib.suppress(OSError):  # macOS has none, some containers forbid it: the peak then counts from the start
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    return int(psutil.Process().memory_info().rss)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    found: Callable[[int], int] | None = None
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


def trim_heap() -> None:
    """Return freed memory to the system; glibc keeps it otherwise, and as fragments it adds up."""
    trim = _trim()
    if trim is not None:
        trim(0)
