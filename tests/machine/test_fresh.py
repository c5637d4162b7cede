"""A fresh process takes nothing from the working folder, and says how it ended."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.machine.fresh import Ended, run_module, run_preloaded

MODULES = {
    "speaking": """
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("OMP_NUM_THREADS"), sys.flags.safe_path, sys.path]))
sys.stderr.write("first\\nlast\\n")
sys.exit(7)
""",
    "sleeping": """
import os, pathlib, time
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(60)
""",
    "marking": """
import os, sys
print(getattr(sys, "marked", None), "torch" in sys.modules, flush=True)
sys.marked = 1
os.kill(os.getpid(), int(sys.argv[1])) if len(sys.argv) > 1 else 1 / 0
""",
    "waiting": """
import os, time
print(os.getpid(), os.getppid(), flush=True)
time.sleep(60)
""",
}
ASKING = """
from compressor.machine.fresh import run_preloaded
run_preloaded("waiting", heard=lambda line: print(line, flush=True))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with importable modules."""
    folder = tmp_path_factory.mktemp("library")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def speaking(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which is not that of the importable modules."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(library)]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


FIXED = functools.partial(run_module, fixed_addresses=True)


@pytest.mark.parametrize("start", [run_module, FIXED, run_preloaded])
def test_it_runs_and_reports(speaking: Path, repository: Path, start: Callable[..., Ended]) -> None:
    done = start("speaking", "one", "two words", threads=3, timeout=60)
    arguments, threads, safe, path = json.loads(done.stdout)
    assert (done.code, done.last_line) == (7, "last")
    assert (arguments, threads, safe) == (["one", "two words"], "3", True)
    assert path[0] == str(repository)
    assert not {"", ".", str(speaking)} & set(path)


def test_forks_owe_nothing_to_each_other_and_end_as_processes_do(speaking: Path) -> None:
    heard: list[str] = []
    failed = run_preloaded("marking", heard=heard.append)
    killed = run_preloaded("marking", "9", heard=heard.append)
    assert (failed.code, failed.last_line, killed.code) == (1, "ZeroDivisionError: division by zero", -9)
    assert heard == ["None True"] * 2


@pytest.mark.parametrize("victim", ["asking", "server"])
def test_forks_die_with_the_process_that_asked_and_with_the_server(speaking: Path, victim: str) -> None:
    asking = subprocess.Popen([sys.executable, "-c", ASKING], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    pids = asking.stdout.readline().split()
    os.kill(asking.pid if victim == "asking" else int(pids[1]), signal.SIGKILL)
    asking.wait(timeout=60)
    deadline = time.monotonic() + 30
    while (alive := [pid for pid in pids if Path("/proc", pid).exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and not alive


@pytest.mark.parametrize("start", [run_module, run_preloaded])
def test_what_takes_too_long_is_ended(speaking: Path, start: Callable[..., Ended]) -> None:
    run_preloaded("speaking")  # once its libraries are loaded, the server answers at once
    with pytest.raises(TimeoutError, match="sleeping did not end within 3 s"):
        start("sleeping", timeout=3)
    assert not Path("/proc", (speaking / "pid").read_text()).exists()


def test_without_a_server_the_process_is_an_ordinary_one(speaking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.machine.fresh._server", None)
    monkeypatch.setattr("compressor.machine.fresh.subprocess.Popen", _refuse)
    monkeypatch.setattr("compressor.machine.fresh.run_module", lambda *a, **k: Ended(0, "\n".join(a), ""))
    heard: list[str] = []
    assert run_preloaded("speaking", "one", heard=heard.append).code == 0
    assert heard == ["speaking", "one"]


def _refuse(*arguments: object, **options: object) -> None:
    raise OSError("no processes left")


def test_silence_has_a_last_line() -> None:
    assert Ended(1, "", " \n").last_line == "no message"
