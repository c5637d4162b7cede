"""The folder in which a run works, and from which a stopped run goes on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from compressor.errors import CompressorError, ResourceError, UsageError
from compressor.walk.checkpoint import STATE

DENSE_MARK = "dense.json"
"""Says of the dense export in a work folder what it was made from; written when it is finished."""
_LOCK = "lock"
_KEPT = "What was finished is kept; the same command with --resume goes on from it."


def work_folder(out: Path) -> Path:
    """Return the folder beside `out` in which its run works and from which it resumes."""
    return out.parent / f".{out.name}.work"


def refused(what: str, error: OSError) -> CompressorError:
    """Return the error for a place that the file system refuses: the user's choice, unless the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{what}: {error.strerror}", hint="Free some space, or give another folder with -o.")
    return UsageError(f"{what}: {error.strerror}", hint="Give a folder in a place where you may write.")


def check_work(work: Path) -> None:
    """Refuse a work folder that no run has made: what lies in it is removed sooner or later.

    Raises:
        UsageError: it is a link or a file, it holds a link, or it has content without the lock of a run.
    """
    hint = "Move it away, or give another folder with -o."
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise UsageError(f"{work} is {'a link' if work.is_symlink() else 'a file'}, not the folder of a run", hint=hint)
    if not work.is_dir() or not any(work.iterdir()):
        return
    if not (work / _LOCK).is_file():
        raise UsageError(f"{work}: the folder holds files that are not of a run of compressor", hint=hint)
    for root, folders, files in os.walk(work):
        if links := [name for name in (*folders, *files) if os.path.islink(os.path.join(root, name))]:
            raise UsageError(f"{work}: {links[0]} in it is a link, which no run makes", hint=hint)


@contextmanager
def locked(work: Path, *, resume: bool) -> Iterator[Path]:
    """Open the work folder for one run; without `resume` what an earlier run left in it is dropped.

    A run that fails before anything of it is finished leaves no folder.

    Raises:
        UsageError: another run is working in it, it is not the folder of a run, or it cannot be written.
        ResourceError: the disk is full.
    """
    check_work(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        stream = _open_lock(work)
    except OSError as error:
        raise refused(f"cannot work in {work}", error) from error
    with stream:
        if not _hold(stream):
            raise UsageError(f"another run is writing this artifact (it holds {work.name}/{_LOCK})")
        if not resume:
            _empty(work)
        try:
            yield work
        except BaseException as error:
            if not _resumable(work):
                remove_work(work)
            elif isinstance(error, CompressorError):
                error.hint = " ".join(filter(None, (error.hint, _KEPT)))
            raise


def is_working(work: Path) -> bool:
    """Tell whether a run is working in this folder now."""
    try:
        with _open_lock(work, create=False) as stream:
            return not _hold(stream)
    except OSError:
        return False


def remove_work(work: Path) -> None:
    """Remove a work folder; its lock goes last, so that what a kill leaves is still known as the folder of a run."""
    with suppress(OSError):
        _empty(work)
        (work / _LOCK).unlink()
        work.rmdir()


def _open_lock(work: Path, *, create: bool = True) -> IO[str]:
    """Open the lock file for writing; a link in its place is not followed."""
    flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    return os.fdopen(os.open(work / _LOCK, flags, 0o644), "w")


def _hold(stream: IO[str]) -> bool:
    """Lock a file until it is closed; return False where another process or stream holds it."""
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _empty(work: Path) -> None:
    for item in work.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != _LOCK:
            item.unlink()


def _resumable(work: Path) -> bool:
    """Tell whether a work folder holds a finished part of a pass, or the dense export."""
    return any(work.rglob(f"pass-*/{STATE}")) or any(work.rglob(DENSE_MARK))
