"""A fresh process takes nothing from the working folder, and says how it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compressor.machine.fresh import Ended, run_module

SPEAKING = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("OMP_NUM_THREADS"), sys.flags.safe_path, sys.path]))
sys.stderr.write("first\\nlast\\n")
sys.exit(7)
"""


@pytest.fixture
def speaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable module `speaking`, in a folder that is not the working folder."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "lib" / "speaking.py").write_text(SPEAKING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "lib")]))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("fixed", [False, True])
def test_it_runs_and_reports(speaking: Path, repository: Path, fixed: bool) -> None:
    done = run_module("speaking", "one", "two words", threads=3, timeout=60, fixed_addresses=fixed)
    arguments, threads, safe, path = json.loads(done.stdout)
    assert (done.code, done.last_line) == (7, "last")
    assert (arguments, threads, safe) == (["one", "two words"], "3", True)
    assert path[0] == str(repository)
    assert not {"", ".", str(speaking / "here")} & set(path)


def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeping.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TimeoutError, match="sleeping did not end within 1 s"):
        run_module("sleeping", timeout=1)


def test_silence_has_a_last_line() -> None:
    assert Ended(1, "", " \n").last_line == "no message"
