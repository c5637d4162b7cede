"""Want of memory, in whatever words a library reports it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from compressor.errors import ResourceError, summary

MEMORY_HINT = "Fewer or shorter calibration samples or a smaller calibration.cache_memory need less."
_PHRASES = (
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "unable to allocate",
    "bad allocation",
    "std::bad_alloc",
    "failed to map segment",  # the loader of shared libraries
    "memoryerror",
    "please read this for advice on how to solve this issue",  # numpy, whose libraries could not be loaded
)


def is_shortage(error: BaseException) -> bool:
    """Tell whether an error, or one that led to it, means that memory ran out."""
    return any(_alone(cause) for cause in _chain(error))


def mentions_shortage(text: str) -> bool:
    """Tell whether what a process wrote before it ended says that memory ran out."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in _PHRASES)


def shortage(error: BaseException) -> ResourceError:
    """Return the error of ours for want of memory."""
    said = summary(error) if str(error) and not isinstance(error, ImportError) else ""
    return ResourceError(f"out of memory{f': {said}' if said else ''}", hint=MEMORY_HINT)


def raise_shortage(error: BaseException) -> None:
    """Raise ResourceError where an error means that memory ran out; for those who turn any error into one of theirs.

    Raises:
        ResourceError: it does.
    """
    if isinstance(error, ResourceError):
        raise error
    if is_shortage(error):
        raise shortage(error) from error


def _alone(error: BaseException) -> bool:
    # PyTorch and ONNX Runtime raise RuntimeErrors of their own; comparing names spares importing them.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and mentions_shortage(str(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it; a chain may lead back to itself."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__
