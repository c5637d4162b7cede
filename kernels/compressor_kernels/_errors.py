"""What can go wrong."""

from __future__ import annotations


class KernelError(Exception):
    """The base of all errors of this package."""


class BuildError(KernelError):
    """The library could not be built."""


class LibraryError(KernelError):
    """The library is not there, or this processor cannot run it as asked."""


class ArgumentError(KernelError, ValueError):
    """An array has the wrong shape or type."""
