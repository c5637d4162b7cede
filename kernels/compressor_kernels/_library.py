"""The shared library: where it is, and its functions through ctypes."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

from compressor_kernels._errors import LibraryError

LIBRARY = "COMPRESSOR_KERNELS_LIBRARY"
"""Environment variable: the library to use instead of the wheel's own."""
PATH = "COMPRESSOR_KERNELS_PATH"
"""Environment variable: the code path to use (`paths`) instead of the best one."""
DENSE_FROM = "COMPRESSOR_KERNELS_DENSE_FROM"
"""Environment variable: the number of tokens from which on the dense path is taken, instead of what was measured."""


class Matrix(ctypes.Structure):
    """`ck_matrix` of compressor_kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("format", "rows", "cols", "pitch", "blocks", "one_zero")),
        *((name, ctypes.c_void_p) for name in ("data", "scale", "zero")),
    ]


def library_path() -> Path:
    """Return the shared library, for `SessionOptions.register_custom_ops_library`.

    Raises:
        LibraryError: there is none.
    """
    given = os.environ.get(LIBRARY)
    suffix = {"win32": ".dll"}.get(sys.platform, ".so")
    path = Path(given) if given else Path(__file__).parent / f"libcompressor_kernels{suffix}"
    if path.is_file():
        return path.absolute()
    if given:
        raise LibraryError(f"{LIBRARY}={given}: there is no such file; unset it, or name a library that was built")
    raise LibraryError(
        f"{path} is not there: install the wheel compressor-kernels, or build the library with "
        f"compressor_kernels.build(FILE) and set {LIBRARY}=FILE"
    )


@cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded: {error}; build it on this machine") from error
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    matrix = ctypes.POINTER(Matrix)
    library.ck_row_skip.argtypes = [matrix, pointer, size, pointer, size, size, pointer, pointer]
    library.ck_gated_mlp.argtypes = [matrix, matrix, pointer, pointer, size, pointer, size, size, pointer, pointer]
    library.ck_path.restype = library.ck_path_name.restype = ctypes.c_char_p
    library.ck_select_path.argtypes = [ctypes.c_char_p]
    library.ck_costs.argtypes = [size, ctypes.c_int, *[ctypes.POINTER(ctypes.c_double)] * 3]
    wanted = os.environ.get(PATH, "")
    if library.ck_select_path(wanted.encode()):
        raise LibraryError(f"{PATH}={wanted}: this processor has no such path; unset it, or use portable")
    return library


def library() -> ctypes.CDLL:
    """Return the loaded library.

    Raises:
        LibraryError: there is none, or this processor lacks the path that the environment names.
    """
    return _load(library_path())


def paths() -> dict[str, bool]:
    """Return each code path of the library, best first, and whether this processor can run it."""
    found: dict[str, bool] = {}
    usable = ctypes.c_int()
    while (name := library().ck_path_name(len(found), ctypes.byref(usable))) is not None:
        found[name.decode()] = bool(usable.value)
    return found


def path() -> str:
    """Return the code path in use."""
    return str(library().ck_path().decode())


def select_path(name: str = "") -> None:
    """Use the named code path in this process from now on; "" takes the best.

    Raises:
        LibraryError: this processor has no such path.
    """
    if library().ck_select_path(name.encode()):
        known = ", ".join(each for each, usable in paths().items() if usable)
        raise LibraryError(f"no code path {name!r} on this processor: it can run {known}")


def costs(format: str) -> dict[str, dict[str, float]]:
    """Return what a weight costs on this machine, in seconds; measured on the first call.

    Args:
        format: "f32", "f16", "bf16", "int8" or "int4".

    Returns:
        For `add` (rows are added up) and `meet` (rows meet an input): `loop`, to use a weight for one token; on the
        dense path `read`, to bring it into cache, and `token`, to use it there for one token.
    """
    found = {}
    for kind, name in enumerate(("add", "meet")):
        values = [ctypes.c_double() for _ in range(3)]
        library().ck_costs(FORMATS[format], kind, *map(ctypes.byref, values))
        found[name] = dict(zip(("loop", "read", "token"), (value.value for value in values), strict=True))
    return found


FORMATS = {"f32": 0, "f16": 1, "bf16": 2, "int8": 3, "int4": 4}
"""Numbers of the formats in the library."""
