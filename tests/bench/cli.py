"""How long `compressor --help` takes: goal U1."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from tests.bench.harness import REPOSITORY, Context, Row

SUITE = "cli"
_CALLS = {"compressor --help": ["--help"], "compressor recipes list": ["recipes", "list"]}
_ROUNDS = 5


def run(context: Context) -> Row:
    """Call each command `_ROUNDS` times after one that fills the file cache."""
    rows = []
    for name, arguments in _CALLS.items():
        context.say(f"{SUITE}/{name}")
        walls, cpus = [], []
        for number in range(_ROUNDS + 1):
            wall, cpu = _call(arguments)
            if number:
                walls.append(wall)
                cpus.append(cpu)
        median = statistics.median
        rows.append({"command": name, "seconds": median(walls), "cpu_seconds": median(cpus), "runs": sorted(walls)})
    return {"settings": {"rounds": _ROUNDS}, "rows": rows, "skipped": []}


def _call(arguments: list[str]) -> tuple[float, float]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "compressor", *arguments]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"compressor {' '.join(arguments)} ended with exit code {child.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime
