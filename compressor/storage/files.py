"""The files of a model folder: regular files that lie in it, or in the hub cache whose snapshot it is.

A folder comes from somebody else, and git keeps symbolic links: a `chat_template.jinja` that leads to somebody's key
would be copied into the artifact. So every command asks here before a library sees the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from compressor.errors import ModelError, brief
from compressor.storage.json_files import read_json
from compressor.storage.regular import kind_of

_READ = frozenset(
    {".json", ".txt", ".jinja", ".model", ".safetensors", ".onnx", ".data", ".ort", ".py", ".bpe", ".spm", ".tiktoken"}
    | {".yaml", ".vocab"}
)
"""Endings of the files that we, transformers or ONNX Runtime open by name."""
_DEPTH = 2
"""Folders below a model folder in which files are opened: `1_Pooling`, `onnx`, `additional_chat_templates`."""
_INDEX_ENDING = ".index.json"


def check_folder(folder: Path) -> None:
    """See that nothing that a loader may open leads out of a model folder or is no regular file.

    Links are allowed inside the folder and, in a snapshot of a hub cache, to its blobs. Shards that an index names lie
    in the folder too.

    Raises:
        ModelError: a file leads outside, is a pipe or another special file, or an index cannot be read.
    """
    for reason in foreign_files(folder).values():
        raise ModelError(
            f"{folder}: {reason}",
            hint="Put the file itself into the folder; links may lead only into the folder or to a hub cache's blobs.",
        )
    for index in sorted(folder.glob(f"*{_INDEX_ENDING}")):
        read_index(index)


def foreign_files(folder: Path) -> dict[str, str]:
    """Return relative path -> what is wrong, for all that a loader may open and that is no file of the folder."""
    found = {}
    for path in _opened(folder):
        if reason := _refusal(folder, path):
            name = path.relative_to(folder).as_posix()
            found[name] = f"{name} {reason}"
    return found


def own_file(folder: Path, name: str) -> Path | None:
    """Return the file of that relative name, None where the folder has none.

    Raises:
        ModelError: it leads outside the folder, or is no regular file.
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    if not is_inside(folder, name):
        raise ModelError(f"{folder}: {name} is a link to outside of the folder")
    if reason := _refusal(folder, path):
        raise ModelError(f"{folder}: {name} {reason}")
    return path if path.is_file() else None


def is_inside(folder: Path, name: str) -> bool:
    """Tell whether a relative path stays in the folder, also through symbolic links."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not name:
        return False
    return _leads_inside(folder, folder / name)


def read_index(index: Path) -> dict[str, str]:
    """Return tensor name -> file name of the shards that an index lists.

    Raises:
        ModelError: it cannot be read, or names a file outside its folder.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        raise ModelError(f"{index.name} cannot be read: weight_map is {brief(shards)}; allowed: tensor name -> file")
    for file in shards.values():
        if PurePosixPath(file).name != file or file in ("", "..") or "\\" in file or "\0" in file:
            raise ModelError(f"{index.name} points outside the model folder: {brief(file)}")
    return shards


def _opened(folder: Path) -> Iterator[Path]:
    """Yield what a loader may open: files with the endings of `_READ`, and links that may stand for a folder."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        yield from sorted(here / name for name in files if Path(name).suffix in _READ)
        deep = len(here.relative_to(folder).parts) >= _DEPTH
        yield from sorted(here / name for name in folders if not deep and (here / name).is_symlink())
        folders[:] = [] if deep else [name for name in folders if not name.startswith(".")]


def _refusal(folder: Path, path: Path) -> str:
    """Return why a path is no file of the folder, an empty string if it is, is a folder, or leads nowhere."""
    if path.is_symlink() and not _leads_inside(folder, path):
        return "is a link to outside of the folder"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"is {kind_of(path)}" if path.is_symlink() else f"cannot be read: {error.strerror}"
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else f"is {kind_of(path)}, not a regular file"


def _leads_inside(folder: Path, path: Path) -> bool:
    """Tell whether a path ends in the folder or, in a snapshot of a hub cache, among the blobs of its repository."""
    real, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if target.is_relative_to(real):
        return True
    if real.parent.name != "snapshots":
        return False
    return target.is_relative_to(os.path.realpath(real.parent.parent / "blobs"))
