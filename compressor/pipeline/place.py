"""The place of an artifact: what may be replaced there, and how a new one takes it, whole or not at all.

Nothing is removed but files that the replaced artifact's own manifest lists, and no link is followed. What version
control keeps beside an artifact (`.git` of a clone) stays; anything else that is not of it is a reason to refuse.

A replaced artifact lies in `.NAME.old` until the new one stands and has what is to be kept. A kill may come at any
moment: `restore` brings the old one back, or finishes the replacement.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from compressor.errors import CompressorError, ResourceError, UsageError
from compressor.machine.progress import Progress
from compressor.pipeline.work import check_work, is_working, refused, work_folder
from compressor.storage.artifact import BESIDE
from compressor.verification.manifest import MANIFEST, artifact_files, is_sealed, read_manifest

_SHOWN = 5
_AT_WORKING_FOLDER, _EXCHANGE = -100, 2
"""Of renameat2: relative paths start at the working folder; the two paths change places."""


def located(out: Path) -> Path:
    """Return an artifact folder as an absolute path; a link to a folder is followed once, here."""
    absolute = Path(os.path.abspath(out))
    return absolute.resolve() if absolute.is_symlink() and absolute.is_dir() else absolute


def rejected_folder(out: Path) -> Path:
    """Return where an artifact that failed verification goes when `out` holds one that passed."""
    return out.parent / f"{out.name}.rejected"


def old_folder(out: Path) -> Path:
    """Return where the artifact of `out` lies while another one takes its place."""
    return out.parent / f".{out.name}.old"


def check_target(out: Path) -> None:
    """Refuse to overwrite what no run of ours has written, and places where nothing can be written.

    Raises:
        UsageError: `out`, or a folder that the run may use beside it, is a file, a link or a folder with other
            content, or lies in a place where no folder can be made.
        ResourceError: the disk is full.
    """
    if os.path.ismount(out):
        raise UsageError(f"-o {out}: is a mount point, which cannot be replaced", hint=f"Give {out / 'artifact'}.")
    check_replaceable(out)
    if out.exists():
        check_replaceable(rejected_folder(out))
    for old in (old_folder(out), old_folder(rejected_folder(out))):
        check_replaceable(old)
    check_work(work_folder(out))
    place = next(folder for folder in out.parents if folder.exists())
    try:
        Path(tempfile.mkdtemp(prefix=".compressor-", dir=place)).rmdir()
    except OSError as error:
        raise refused(f"-o {out}: {place} cannot be written", error) from error


def check_replaceable(folder: Path) -> None:
    """See that a place is free, an empty folder, or an artifact of ours in which nothing else lies.

    Raises:
        UsageError: it is not.
    """
    hint = "Give a folder that does not exist, or an artifact to replace."
    if folder.is_symlink():
        raise UsageError(f"-o {folder}: is a link that leads to no folder of its own", hint=hint)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"-o {folder}: is a file", hint=hint)
    if not any(folder.iterdir()):
        return
    listed = _listed(folder)
    if listed is None:
        raise UsageError(f"-o {folder}: the folder holds files that are not an artifact of compressor", hint=hint)
    if strangers := sorted(_strangers(folder, listed)):
        more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
        raise UsageError(
            f"-o {folder}: beside the artifact the folder holds {', '.join(strangers[:_SHOWN])}{more}, which its"
            f" {MANIFEST} does not list",
            hint="Move that away, or give another folder.",
        )


def put_in_place(ready: Path, out: Path) -> None:
    """Let a finished folder take the place `out`; what version control keeps in a replaced artifact is taken over.

    Raises:
        UsageError: `out` has come to hold something else than an artifact.
        ResourceError: the file system refuses.
    """
    try:
        if not out.exists() or not any(out.iterdir()):
            ready.rename(out)
            return
        if _listed(out) is None:
            raise UsageError(f"-o {out}: the folder was changed during the run and is no artifact any more")
        old = old_folder(out)
        ready.rename(old)
        if not _swap(old, out):
            old.rename(ready)
            out.rename(old)
            ready.rename(out)
        _settle(old, out)
    except OSError as error:
        raise ResourceError(f"cannot put the artifact at {out}: {error.strerror}") from error


def restore(path: Path | str | None) -> str | None:
    """Bring back or clear away what a replacement that was killed has left beside an artifact folder.

    Any command that takes the folder calls this first; a run that is at work now is left alone.

    Args:
        path: of the folder, as the user gave it; what is no such path (a hub id, None) is left alone as well.

    Returns:
        A sentence for the user where an artifact was brought back.
    """
    if path is None:
        return None
    try:
        out = located(Path(path))
        old = old_folder(out)
        if not _is_folder(old) or is_working(work_folder(out)):
            return None
        if not any(old.iterdir()):  # the last step was missing
            old.rmdir()
        if _listed(old) is None:
            return None
        if not os.path.lexists(out) or (_is_folder(out) and not any(out.iterdir())):
            old.rename(out)
            return f"{out.name}: an earlier run was killed while it replaced this artifact; it is back from {old.name}"
        if _is_folder(out) and _listed(out) is not None:
            _settle(old, out)
    except (OSError, ValueError):  # a name that no file has, or a place that cannot be written: the command says so
        pass
    return None


def restore_all(progress: Progress, *paths: Path | str | None) -> None:
    """Restore every folder that a command takes, and say which were brought back."""
    for path in paths:
        if said := restore(path):
            progress.info(said)


def _listed(folder: Path) -> frozenset[str] | None:
    """Return the files that belong to an artifact of ours; None where the folder is none, or its manifest damaged."""
    file = folder / MANIFEST
    if file.is_symlink() or not file.is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except (CompressorError, RecursionError):
        return None
    return artifact_files(manifest) if is_sealed(manifest) else None


def _strangers(folder: Path, listed: frozenset[str]) -> Iterator[str]:
    """Yield what lies in an artifact folder and is neither listed nor kept by version control; links are not followed.

    A listed file that is a link is none: it is replaced as a link.
    """
    known = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    for root, folders, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        if here == Path():
            folders[:] = [name for name in folders if name not in BESIDE]
            files = [name for name in files if name not in BESIDE]
        for name in list(folders):
            path = (here / name).as_posix()
            if path not in known or os.path.islink(os.path.join(root, name)):
                folders.remove(name)
                yield f"{path}/"
        for name in files:
            path, full = (here / name).as_posix(), os.path.join(root, name)
            if path not in listed or not (os.path.isfile(full) or os.path.islink(full)):
                yield path


def _swap(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False where the system or the file system cannot (other than Linux)."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if exchange is None:
        return False
    here = _AT_WORKING_FOLDER
    return bool(exchange(here, os.fsencode(first), here, os.fsencode(second), _EXCHANGE) == 0)


def _settle(old: Path, out: Path) -> None:
    """Move what is not of the replaced artifact to the one that stands, and remove the files of the replaced one."""
    listed = _listed(old)
    if listed is None:
        return
    for item in old.iterdir():
        own = any(PurePosixPath(name).parts[0] == item.name for name in listed)
        if not own and not os.path.lexists(out / item.name):
            item.rename(out / item.name)
    root = old.resolve()
    with suppress(OSError):
        for name in sorted(listed - {MANIFEST}):
            if (old / name).parent.resolve().is_relative_to(root):
                (old / name).unlink(missing_ok=True)
        for folder, _, _ in os.walk(old, topdown=False):
            if Path(folder) != old:
                os.rmdir(folder)
        (old / MANIFEST).unlink(missing_ok=True)
        old.rmdir()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
