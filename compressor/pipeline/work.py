"""The folder in which a run works, and how its result takes its place: whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import ResourceError, UsageError

MANIFEST = "compression.json"
_LOCK = "lock"


def work_folder(out: Path) -> Path:
    """Return the folder beside `out` in which its run works and from which it resumes."""
    return out.parent / f".{out.name}.work"


def rejected_folder(out: Path) -> Path:
    """Return where an artifact that failed verification goes when `out` holds one that passed."""
    return out.parent / f"{out.name}.rejected"


def check_target(out: Path) -> None:
    """Refuse to overwrite what no run of ours has written.

    Raises:
        UsageError: `out` is a file, or a folder with other content.
    """
    if out.is_file():
        raise UsageError(f"-o {out}: is a file", hint="Give a folder that does not exist, or an artifact to replace.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(
            f"-o {out}: the folder holds files that are not an artifact of compressor",
            hint="Give a folder that does not exist, or an artifact to replace.",
        )


@contextmanager
def locked(work: Path, *, resume: bool) -> Iterator[Path]:
    """Open the work folder for one run; without `resume` what an earlier run left in it is dropped.

    Raises:
        UsageError: another run is working in it.
        ResourceError: it cannot be written.
    """
    import fcntl

    try:
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / _LOCK).open("w")
    except OSError as error:
        raise ResourceError(f"cannot work in {work}: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another run is writing this artifact (it holds {work.name}/{_LOCK})") from None
        if not resume:
            for item in work.iterdir():
                if item.name != _LOCK:
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
        yield work


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
