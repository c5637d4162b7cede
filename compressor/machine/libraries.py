"""How the libraries that we call behave in a process: no telemetry, no warnings that the user can do nothing about."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Iterator

_NO_TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Else every session writes an identifier of this machine under the home folder, and looks for a host to send it to.
    "ORT_DISABLE_TELEMETRY": "1",
}
_CALM = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def no_telemetry() -> None:
    """Switch off the telemetry of libraries in this process and its children, unless the environment says else.

    They ask for it when they are loaded, so `import compressor` comes first.
    """
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Switch the garbage collector off while entered, for imports and work as short.

    Importing torch and transformers makes a million objects that stay, and the collector looks through them again and
    again: a quarter of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def calm_libraries() -> Iterator[None]:
    """Switch off, beside telemetry, warnings while entered; progress bars too where stderr is not a terminal.

    Libraries read these settings when they are imported, which is to happen inside. What the environment says already
    stays as it is; what is added to it stays after the end.
    """
    no_telemetry()
    for name, value in _CALM.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
