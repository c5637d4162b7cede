"""The folder in which a run works, and how its result takes its place: whole or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import CompressorError, ResourceError, UsageError
from compressor.verification import MANIFEST
from compressor.walk.checkpoint import STATE

DENSE_MARK = "dense.json"
"""Says of the dense export in a work folder what it was made from; written when it is finished."""
_LOCK = "lock"
_KEPT = "What was finished is kept; the same command with --resume goes on from it."


def work_folder(out: Path) -> Path:
    """Return the folder beside `out` in which its run works and from which it resumes."""
    return out.parent / f".{out.name}.work"


def rejected_folder(out: Path) -> Path:
    """Return where an artifact that failed verification goes when `out` holds one that passed."""
    return out.parent / f"{out.name}.rejected"


def check_target(out: Path) -> None:
    """Refuse to overwrite what no run of ours has written, and places where nothing can be written.

    Raises:
        UsageError: `out` is a file, a folder with other content, or in a place where no folder can be made.
        ResourceError: the disk is full.
    """
    if out.is_file():
        raise UsageError(f"-o {out}: is a file", hint="Give a folder that does not exist, or an artifact to replace.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(
            f"-o {out}: the folder holds files that are not an artifact of compressor",
            hint="Give a folder that does not exist, or an artifact to replace.",
        )
    place = next(folder for folder in out.parents if folder.exists())
    try:
        Path(tempfile.mkdtemp(prefix=".compressor-", dir=place)).rmdir()
    except OSError as error:
        raise _refused(f"-o {out}: {place} cannot be written", error) from error


def _refused(what: str, error: OSError) -> CompressorError:
    """Return the error for a place that the file system refuses: the user's choice, unless the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{what}: {error.strerror}", hint="Free some space, or give another folder with -o.")
    return UsageError(f"{what}: {error.strerror}", hint="Give a folder in a place where you may write.")


@contextmanager
def locked(work: Path, *, resume: bool) -> Iterator[Path]:
    """Open the work folder for one run; without `resume` what an earlier run left in it is dropped.

    A run that fails before anything of it is finished leaves no folder.

    Raises:
        UsageError: another run is working in it, or it cannot be written.
        ResourceError: the disk is full.
    """
    import fcntl

    try:
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / _LOCK).open("w")
    except OSError as error:
        raise _refused(f"cannot work in {work}", error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another run is writing this artifact (it holds {work.name}/{_LOCK})") from None
        if not resume:
            for item in work.iterdir():
                if item.name != _LOCK:
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
        try:
            yield work
        except BaseException as error:
            if not _resumable(work):
                shutil.rmtree(work, ignore_errors=True)
            elif isinstance(error, CompressorError):
                error.hint = " ".join(filter(None, (error.hint, _KEPT)))
            raise


def _resumable(work: Path) -> bool:
    """Tell whether a work folder holds a finished part of a pass, or the dense export."""
    return any(work.glob(f"pass-*/{STATE}")) or (work / DENSE_MARK).is_file()


def put_in_place(ready: Path, out: Path) -> None:
    """Rename the finished folder to `out`; what was there is removed after the new one stands.

    Raises:
        ResourceError: the file system refuses.
    """
    old = out.parent / f".{out.name}.old"
    try:
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        ready.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ResourceError(f"cannot put the artifact at {out}: {error.strerror}") from error
