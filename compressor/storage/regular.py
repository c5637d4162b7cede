"""Regular files and what is none: named pipes, sockets, devices, links that lead back to themselves."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe without a writer does not keep us waiting.

    Raises:
        OSError: there is no such file, or it is of another kind.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"it is {kind_of(path)}, not a regular file")
    return os.fdopen(handle, "rb")


def kind_of(path: Path) -> str:
    """Return what a path is, for a message."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "a link that leads back to itself" if path.is_symlink() else str(error.strerror)
    return next((name for test, name in _KINDS if test(mode)), "a special file")


_KINDS = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)
