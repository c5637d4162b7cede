"""What a process of its own is doing reaches the progress of the one that asked."""

from __future__ import annotations

import io

import pytest

from compressor.machine.progress import PlainProgress
from compressor.machine.retold import WrittenProgress, retell


def test_every_call_is_told_again() -> None:
    lines, told = io.StringIO(), io.StringIO()
    written = WrittenProgress(lines)
    written.expect(9)
    written.stage("export", total=2)
    written.advance("graph\ntraced")
    written.info("a note")
    written.stage("time")
    progress = PlainProgress(told, clock=lambda: 0.0, memory=lambda: 0)
    for line in lines.getvalue().splitlines():
        retell(line, progress)
    said = [line.partition("] ")[2] for line in told.getvalue().splitlines() if "] " in line]
    assert said[0] == "export: 2 steps" and said[-1] == "time" and "a note" in said


@pytest.mark.parametrize(
    "line", ["", "loaded", "3", "[]", "{}", "[1, 2]", '["close"]', '["stage"]', '["stage", 1, 2, 3]', "[" * 100_000]
)
def test_other_lines_say_nothing(line: str) -> None:
    told = io.StringIO()
    retell(line, PlainProgress(told))
    assert told.getvalue() == ""
