"""The fresh process: `python -m compressor.verification JOB.json OUT.json`.

On stdout a line says what has been done.
OUT.json receives the verdict, or `{"error": {message, hint, exit_code}}`; the process ends with the exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from compressor.errors import UsageError
from compressor.machine.asking import answer
from compressor.storage.json_files import read_json
from compressor.verification import Job, verify


def main(arguments: list[str]) -> int:
    """Read the job, verify, write the answer; return the exit code (see `compressor.errors`)."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m compressor.verification JOB.json OUT.json")
    return answer(Path(arguments[0]), Path(arguments[1]), _carry_out)


def _carry_out(request: Path) -> dict[str, Any]:
    return verify(_read_job(request), advance=lambda done: print(done, flush=True)).to_json()


def _read_job(path: Path) -> Job:
    try:
        return Job.from_json(read_json(path))
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{path}: not a verification job: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
