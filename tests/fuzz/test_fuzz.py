"""A tenth of the campaign, and that it finds what it is there to find."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.campaign import run
from tests.fuzz.mutations import SECRET


def test_a_tenth(tmp_path: Path) -> None:
    outcomes = list(run(0, range(1000), tmp_path / "scratch"))
    assert [outcome.index for outcome in outcomes] == list(range(1000))
    assert [(outcome.index, outcome.kind, outcome.fault) for outcome in outcomes if outcome.fault] == []


class Careless:
    """An input whose reading does one thing, and which is accepted."""

    codes = (2,)
    allowed: tuple[str, ...] = ()

    def __init__(self, do: Callable[[Path], object]) -> None:
        self._do = do

    def attempt(self, rng: Random, folder: Path) -> str:
        self._do(folder)
        return "accepted"


def _write(folder: Path) -> None:
    (folder.parents[1] / "outside.txt").write_text("x")


def _read(folder: Path) -> None:
    (folder / "link").symlink_to(folder / SECRET)
    (folder / "link").read_text()


def _import(folder: Path) -> None:
    exec(compile("1", str(folder / "evil.py"), "exec"))


@pytest.mark.parametrize(
    ("do", "fault"),
    [
        (lambda folder: {}["x"], "KeyError"),
        (lambda folder: os.kill(os.getpid(), signal.SIGABRT), "died of signal 6"),
        (lambda folder: subprocess.run(["true"]), "starts a process"),
        (_write, "writes outside"),
        (_read, "reads a file outside"),
        (_import, "runs code of the input"),
        (lambda folder: None, ""),
    ],
)
def test_faults_are_found(do: Callable[[Path], object], fault: str, tmp_path: Path) -> None:
    outcomes = list(run(0, (0, 2), tmp_path / "scratch", {"recipes": lambda scratch: Careless(do)}))
    assert [outcome.index for outcome in outcomes] == [0, 2]
    assert all(fault in outcome.fault and bool(outcome.fault) == bool(fault) for outcome in outcomes)
