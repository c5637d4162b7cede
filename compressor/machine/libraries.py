"""How the libraries that we call behave in a process: no telemetry, no warnings that the user can do nothing about."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextlib.contextmanager
def calm_libraries() -> Iterator[None]:
    """Switch off telemetry, and while entered warnings; progress bars too where stderr is not a terminal.

    Libraries read these settings when they are imported, which is to happen inside. What the environment says already
    stays as it is; what is added to it stays after the end.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
