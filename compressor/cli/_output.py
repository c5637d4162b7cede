"""Where commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from compressor.machine.libraries import calm_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from compressor.machine.progress import Progress


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

    console = Console(stderr=True, highlight=False, emoji=False)
    with calm_libraries(), contextlib.redirect_stdout(sys.stderr), open_progress(console, quiet=quiet) as progress:
        yield progress
