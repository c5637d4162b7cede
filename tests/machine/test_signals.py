"""A run that is asked to end cleans up and says so; what it has started ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.machine.signals import ended_like_ctrl_c

CHILD = """
import os, time
open("child.part", "w").write(str(os.getpid()))
os.rename("child.part", "child")
time.sleep(100)
"""
COMMAND = """
import signal, sys, tempfile, types
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored, and stays so, in what nohup has started
import compressor
from compressor.cli import main
from compressor.machine.fresh import run_module

def run(*args, **given):
    with tempfile.TemporaryDirectory():
        run_module("sleeping")

compressor.pipeline = sys.modules["compressor.pipeline"] = types.SimpleNamespace(run=run)
main(["run", "plain.yaml", "-q"])
"""


@pytest.fixture
def working(tmp_path: Path, repository: Path) -> Callable[[], tuple[subprocess.Popen[str], int]]:
    """Return a function that starts a run whose child sleeps; it returns the process and the child's id."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sleeping.py").write_text(CHILD)
    (tmp_path / "plain.yaml").write_text("version: 1\nname: plain\nmodel: {id: demo}\npasses: []\n")
    path = os.pathsep.join([str(repository), str(tmp_path / "lib")])
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path / "temporary")}

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: (tmp_path / "child").is_file() or process.poll() is not None)
        return process, int((tmp_path / "child").read_text())

    return start


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{process}/stat")
    return status.is_file() and ") Z " in status.read_text()  # ended, and nobody has asked how


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_as_ctrl_c_does(
    working: Callable[[], tuple[subprocess.Popen[str], int]], tmp_path: Path, number: signal.Signals
) -> None:
    process, child = working()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted" in errors and "--resume" in errors and "Traceback" not in errors
    wait_for(lambda: is_gone(child))
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_run_leaves_no_child(working: Callable[[], tuple[subprocess.Popen[str], int]]) -> None:
    process, child = working()
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: is_gone(child))


def test_an_ignored_signal_stays_ignored_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_like_ctrl_c():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
