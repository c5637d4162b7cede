"""What lies in an artifact folder and is no part of it: entries of any kind, and files that no export writes.

The folder is listed entry by entry and no link is followed: a pipe would never end, a link leads elsewhere, an empty
folder shadows a module on the import path as a file does.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from compressor.architectures import EMBEDDINGS, GRAPHS, PARTS
from compressor.errors import ModelError
from compressor.exporters.ort import OPERATORS
from compressor.exporters.remote_code import MODULE
from compressor.storage.artifact import BESIDE
from compressor.storage.companions import COMPANIONS, companion_files
from compressor.verification.verdict import Check, yes

REFERENCE = "verification/reference.safetensors"
"""In a folder of its own: servers take every `*.safetensors` beside config.json for weights."""
_WRITTEN = {"config.json", "genai_config.json", f"{MODULE}.py", OPERATORS, REFERENCE}
_PATTERNS = (
    re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors"),
    re.compile(r"model\.(onnx|onnx\.data|ort|safetensors\.index\.json)"),
    re.compile(rf"({'|'.join(map(re.escape, (*GRAPHS, *EMBEDDINGS.values())))})(\.data)?"),
    re.compile(rf"verification/({'|'.join(PARTS)})\.safetensors"),
    re.compile(r"recipe[\w.-]*\.yaml"),
)
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_names(listed: Iterable[str], folder: Path) -> Check:
    """Check that a manifest lists only files that an export writes: no module or pickle of somebody else."""
    try:
        named = companion_files(folder)
    except ModelError:  # another check says what is wrong with it
        named = []
    foreign = sorted(name for name in listed if name not in named and not _is_written(name))
    return yes("files.names", not foreign, f"no export writes {', '.join(foreign)}")


def _is_written(name: str) -> bool:
    return name in _WRITTEN or name in COMPANIONS or any(pattern.fullmatch(name) for pattern in _PATTERNS)


def strangers(folder: Path, known: Iterable[str]) -> list[str]:
    """Return all entries of a folder that are neither known files nor folders of such, each with its kind."""
    files = set(known)
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    found = []
    for name, mode in _entries(folder):
        kind = next((text for test, text in _KINDS if test(mode)), None)
        if kind is not None:
            if not (stat.S_ISLNK(mode) and name in files and _is_blob(folder, name)):
                found.append(f"{name} ({kind})")
        elif stat.S_ISDIR(mode):
            if name not in folders:
                found.append(f"{name} (a folder)")
        elif name not in files:
            found.append(name)
    return sorted(found)


def _entries(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the relative name and the mode of every entry, links themselves and not what they lead to."""
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        if here == Path():
            folders[:] = [name for name in folders if name not in BESIDE]
            files = [name for name in files if name not in BESIDE]
        for name in (*folders, *files):
            yield (here / name).as_posix(), os.lstat(os.path.join(place, name)).st_mode


def _is_blob(folder: Path, name: str) -> bool:
    """Tell whether a link leads to a blob of the hub cache whose snapshot the folder is."""
    real = Path(os.path.realpath(folder))
    blobs = real.parent.parent / "blobs"
    return real.parent.name == "snapshots" and Path(os.path.realpath(folder / name)).parent == blobs
