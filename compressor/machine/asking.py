"""A question to a process of its own: the request goes there as JSON, an answer or an error comes back as JSON.

Errors of ours keep their class, hint and exit code on the way.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, described, restored
from compressor.machine.fresh import Ended, run_preloaded
from compressor.machine.shortage import is_shortage, shortage

REQUEST, ANSWER = "request.json", "answer.json"


def ask(
    module: str,
    request: Mapping[str, Any],
    *,
    crashed: Callable[[Ended], CompressorError],
    threads: int = 1,
    timeout: float | None = None,
    heard: Callable[[str], None] = lambda line: None,
) -> Any:
    """Run `python -m module REQUEST ANSWER` in a fresh process and return what it answers.

    Args:
        module: calls `answer` with its two arguments.
        request: JSON values.
        crashed: returns the error for a process that ended without an answer.
        threads: of its tensor libraries.
        timeout: seconds after which it is ended.
        heard: told each line that it prints, while it runs where that is possible.

    Raises:
        CompressorError: what was raised there, or what `crashed` returns.
        TimeoutError: it took longer than `timeout`.
        ValueError, TypeError, KeyError, RecursionError: the answer cannot be read; `answer` does not write such.
    """
    with tempfile.TemporaryDirectory(prefix="compressor-ask-") as folder:
        asked, place = Path(folder) / REQUEST, Path(folder) / ANSWER
        asked.write_text(json.dumps(request), encoding="utf-8")
        done = run_preloaded(module, str(asked), str(place), threads=threads, timeout=timeout, heard=heard)
        if not place.is_file():
            raise crashed(done)
        data = json.loads(place.read_text(encoding="utf-8"))
    if "error" in data:
        raise restored(data["error"])
    return data


def known_shortage(error: Exception) -> CompressorError | None:
    """Return the error of ours for one that says that memory or disk ran out, None for any other."""
    return shortage(error) if is_shortage(error) else None


def answer(
    request: Path,
    place: Path,
    carry_out: Callable[[Path], dict[str, Any]],
    known: Callable[[Exception], CompressorError | None] = known_shortage,
) -> int:
    """Carry out a request in this process, and write what comes of it, or the error, to `place`.

    Args:
        request: file of the request.
        place: file of the answer.
        carry_out: takes the request's file and returns JSON values.
        known: returns the error of ours that a library's error amounts to; where it returns None, that is raised.

    Returns:
        The exit code of the process: that of the error, or what the answer states as `exit_code`, or 0.
    """
    try:
        data = carry_out(request)
        code = int(data.get("exit_code", 0))
    except Exception as error:
        ours = error if isinstance(error, CompressorError) else known(error)
        if ours is None:
            raise
        data, code = {"error": described(ours)}, ours.exit_code
    place.write_text(json.dumps(data), encoding="utf-8")
    return code
