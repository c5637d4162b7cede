"""The one launcher of fresh Python processes: what runs there owes nothing to this process or to the working folder."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compressor.machine.forking import READY

_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package `compressor`: this checkout, or the installation."""
# What it runs ends with this process, also when that is killed. With fixed addresses, where Linux allows them
# (personality ADDR_NO_RANDOMIZE), what a program lays out in the order of its addresses comes out the same each time.
_START = """
import ctypes, os, sys
from compressor.machine.signals import end_with
end_with(int(sys.argv[1]))
if sys.argv[2] == "fixed" and sys.platform == "linux":
    ctypes.CDLL(None).personality(0x0040000)
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
_READ_AT_IMPORT = ("CUDA", "HF_", "HOME", "HUGGINGFACE", "LD_", "MKL_", "OMP_", "OPENBLAS_", "ORT_", "PATH", "PYTHON",
                   "TMPDIR", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "XDG_")  # fmt: skip
"""What variables begin with that Python and the libraries read when they are loaded."""

_LISTENING_SECONDS = 0.2
_ANSWER_BYTES = 1 << 10
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""Keeps the libraries from starting threads when they are loaded, which would not live on in a fork."""


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


class _Server:
    """The process of `compressor.machine.forking`, as this process sees it."""

    def __init__(self) -> None:
        """Start it; it loads the libraries meanwhile."""
        self.environment = _read_at_import()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-m", "compressor.machine.forking", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                env={**_environment(), **_ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        self._channel = ours
        self._ready = False

    def run(
        self, module: str, arguments: tuple[str, ...], threads: int, timeout: float | None, heard: Callable[[str], None]
    ) -> Ended:
        """Run a module in a fork and wait for its end.

        Raises:
            OSError: the server cannot be reached.
            TimeoutError: the module took longer than `timeout` seconds.
        """
        if not self._ready and self._channel.recv(len(READY)) != READY:
            raise ConnectionError("the server has ended")
        self._ready = True
        request = {
            "module": module,
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": {**_environment(), "OMP_NUM_THREADS": str(threads)},
            "threads": threads,
        }
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [stdout.fileno(), stderr.fileno()])
            answer = self._answer(stdout.fileno(), timeout, heard)
            code = int(json.loads(answer)["code"]) if answer else -9  # the server itself was killed
            return Ended(code, _text(stdout.fileno()), _text(stderr.fileno()))

    def _answer(self, stdout: int, timeout: float | None, heard: Callable[[str], None]) -> bytes:
        """Return the server's answer, nothing if it has ended; until then pass on what the fork prints."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        told = 0
        while not select.select([self._channel], [], [], _LISTENING_SECONDS)[0]:
            if time.monotonic() > deadline:
                raise TimeoutError
            lines = _text(stdout).splitlines(keepends=True)
            for line in lines[told:]:
                if line.endswith("\n"):
                    heard(line.rstrip())
                    told += 1
        answer = self._channel.recv(_ANSWER_BYTES)
        for line in _text(stdout).splitlines()[told:]:
            heard(line)
        return answer

    def close(self) -> None:
        """End it, and what it has forked."""
        self._channel.close()
        if not self._ready:
            self._process.kill()
        self._process.wait()


def _text(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")


_lock = threading.Lock()
_server: _Server | None = None


def prepare_server() -> None:
    """Start, where the system has what it takes (Linux), the process that `run_module` forks preloaded ones from.

    It loads its libraries while this process does something else; it ends with this process.
    """
    with _lock:
        _current_server()


def _current_server() -> _Server | None:
    """Return the server for the environment as it is now, started if need be; None where there can be none."""
    global _server
    if sys.platform != "linux":
        return None
    if _server is not None and _server.environment != _read_at_import():
        _end_server()
    if _server is None:
        with contextlib.suppress(OSError):
            _server = _Server()
    return _server


def _end_server() -> None:
    global _server
    if _server is not None:
        _server.close()
    _server = None


atexit.register(_end_server)


def _environment() -> dict[str, str]:
    """Return the environment of a fresh process: this package first on its path, and never the working folder."""
    # An empty entry of PYTHONPATH means the working folder.
    path = [str(_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _read_at_import() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_IMPORT)}


def run_preloaded(
    module: str,
    *arguments: str,
    threads: int = 1,
    timeout: float | None = None,
    heard: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Run a module as `run_module` does, without waiting for torch and transformers to be imported once more.

    Args:
        module: a module of this package or of an installed one.
        arguments: its command line.
        threads: threads of its tensor libraries.
        timeout: seconds after which it is killed.
        heard: told each line that it prints to stdout, while it runs where that is possible.

    Raises:
        TimeoutError: it took longer than `timeout`.
    """
    with _lock:
        server = _current_server()
        if server is not None:
            try:
                return server.run(module, arguments, threads, timeout, heard)
            except TimeoutError as error:
                _end_server()
                raise _too_late(module, timeout) from error
            except OSError:  # it could not load its libraries: a process without it says why
                _end_server()
            except BaseException:  # Ctrl-C while the fork runs
                _end_server()
                raise
    done = run_module(module, *arguments, threads=threads, timeout=timeout)
    for line in done.stdout.splitlines():
        heard(line)
    return done


def _too_late(module: str, timeout: float | None) -> TimeoutError:
    return TimeoutError(f"{module} did not end within {timeout:.0f} s")


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
    start = ["-P", "-c", _START, str(os.getpid()), "fixed" if fixed_addresses else "any"]
    command = [sys.executable, *start, "-P", "-m", module, *arguments]
    environment = _environment()
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise _too_late(module, timeout) from error
    return Ended(done.returncode, done.stdout, done.stderr)
