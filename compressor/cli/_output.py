"""Where commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from compressor.machine.progress import Progress

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def results() -> Console:
    """Return the console for results (stdout)."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def emit_json(value: Any) -> None:
    """Print strict JSON to stdout; numbers that are not finite become null."""
    typer.echo(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def finite(value: Any) -> Any:
    """Return a copy with None for numbers that are not finite and text for paths."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def working(*, quiet: bool = False) -> Iterator[Progress]:
    """Give the progress for a long command, and keep what libraries print away from stdout and from the user.

    Libraries are imported inside: their telemetry, warnings and progress bars are off unless the environment says else.
    """
    from rich.console import Console

    from compressor.machine.progress import open_progress

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Console(stderr=True, highlight=False, emoji=False)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        with open_progress(console, quiet=quiet) as progress:
            yield progress


def method_options() -> dict[str, type[BaseModel]]:
    """Return the options model of every method by name."""
    from compressor.passes import methods

    return {name: method.Options for name, method in methods().items()}
