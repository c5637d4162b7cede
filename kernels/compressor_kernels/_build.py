"""Builds the library with the C compiler of this machine, where no wheel fits it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from compressor_kernels._errors import BuildError

SOURCE = Path(__file__).parent / "csrc"
"""The folder of the C sources; it is part of the wheel."""

_COMMON = ("-std=c11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")


def sources(machine: str | None = None) -> list[tuple[Path, tuple[str, ...]]]:
    """Return each C file and the flags that it needs beyond those of all.

    Args:
        machine: the processor to build for, as `platform.machine()` calls it; default this one.
    """
    x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64")
    extra = {"path_avx2.c": _AVX2, "path_avx512.c": _AVX512} if x86 else {}
    return [(file, extra.get(file.name, ())) for file in sorted(SOURCE.glob("*.c"))]


def compiler(name: str | None = None) -> str:
    """Return the C compiler: the one named, that of $CC, or `cc`.

    Raises:
        BuildError: there is none.
    """
    wanted = name or os.environ.get("CC") or "cc"
    if found := shutil.which(wanted):
        return found
    raise BuildError(f"no C compiler {wanted!r} on the PATH: install one (apt install gcc) or name it with CC=…")


def build(out: str | Path, *, cc: str | None = None, flags: Sequence[str] = ("-O3",)) -> Path:
    """Build the shared library.

    Args:
        out: the file to write; its folder is made where it is missing.
        cc: the compiler (GCC or Clang); default $CC, or `cc`.
        flags: optimization and the like, for every file.

    Returns:
        The file written, as an absolute path.

    Raises:
        BuildError: there is no compiler, or it failed; its own words are in the message.
    """
    tool, target = compiler(cc), Path(out).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for file, extra in sources():
            objects.append(str(Path(folder) / f"{file.stem}.o"))
            run([tool, *_COMMON, *flags, *extra, "-c", str(file), "-o", objects[-1]])
        made = str(Path(folder) / "library")
        run([tool, "-shared", *flags, *objects, "-o", made])
        shutil.move(made, target)
    return target


def run(command: Sequence[str]) -> None:
    """Run a compiler.

    Raises:
        BuildError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
