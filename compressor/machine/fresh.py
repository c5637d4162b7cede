"""The one launcher of fresh Python processes: what runs there owes nothing to this process or to the working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package `compressor`: this checkout, or the installation."""
# With fixed addresses, where Linux allows them (personality ADDR_NO_RANDOMIZE), what a program lays out in the order of
# its addresses comes out the same each time.
_FIXED_ADDRESSES = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).personality(0x0040000)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: its exit code; the negative number of the signal that killed it.
        stdout: what it printed.
        stderr: what it wrote to the error stream.
    """

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of `stderr`: of a traceback, the one that names the error."""
        return (self.stderr.strip().splitlines() or ["no message"])[-1]


def run_module(
    module: str,
    *arguments: str,
    threads: int | None = None,
    timeout: float | None = None,
    fixed_addresses: bool = False,
) -> Ended:
    """Run `python -m module arguments` in a process of its own and wait for its end.

    The working folder is never on its import path (`-P`): it may be a downloaded model folder, and a `numpy.py` in it
    would be executed.

    Args:
        module: a module of this package or of an installed one.
        arguments: its command line.
        threads: threads of its tensor libraries; None leaves the environment's choice.
        timeout: seconds after which it is killed.
        fixed_addresses: load it at the same memory addresses each time, where the system allows that.

    Raises:
        TimeoutError: it took longer than `timeout`.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    if fixed_addresses:
        command = [sys.executable, "-P", "-c", _FIXED_ADDRESSES, *command[1:]]
    # An empty entry of PYTHONPATH means the working folder.
    path = [str(_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{module} did not end within {timeout:.0f} s") from error
    return Ended(done.returncode, done.stdout, done.stderr)
