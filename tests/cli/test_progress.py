"""Progress as plain lines and on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from compressor.machine.progress import (
    NullProgress,
    PlainProgress,
    RichProgress,
    duration,
    open_progress,
    process_memory,
    size,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines():
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock=clock, memory=lambda: 512_000_000)
    progress.stage("load")
    clock.now = 1.0
    progress.stage("prune", 3)
    for block in range(3):
        clock.now += 10.0
        progress.advance(f"block {block}")
    progress.info("note [this]")
    assert stream.getvalue().splitlines() == [
        "[    0.0s  512 MB] load",
        "[    1.0s  512 MB] prune: 3 steps",
        "[   11.0s  512 MB] prune 1/3: block 0, 20.0s left",
        "[   21.0s  512 MB] prune 2/3: block 1, 10.0s left",
        "[   31.0s  512 MB] prune 3/3: block 2",
        "[   31.0s  512 MB] note [this]",
    ]


def test_the_time_left_follows_the_latest_steps():
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock=clock, memory=lambda: 0)
    progress.stage("export", 8)
    for seconds in (90.0, 3.0, 3.0, 3.0):
        clock.now += seconds
        progress.advance()
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()[1:]] == [
        *("10m 30s left", "4m 39s left", "2m 40s left", "12.0s left")
    ]


def test_stages_are_numbered_once_their_number_is_known():
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=Clock(), memory=lambda: 0)
    progress.stage("load")
    progress.expect(2)
    for name in ("prune", "verify", "one more"):
        progress.stage(name)
    assert [line[19:] for line in stream.getvalue().splitlines()] == ["load", "[1/2] prune", "[2/2] verify", "one more"]


def test_plain_lines_are_few_and_the_last_step_shows():
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock=clock, memory=lambda: 0)
    progress.stage("read")
    for _ in range(1000):
        clock.now += 0.01
        progress.advance()
    progress.close()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 4 <= len(lines) <= 7 and lines[-1].endswith("read 1000")


def test_more_steps_than_were_announced():
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock=clock, memory=lambda: 0)
    progress.stage("prune", 1)
    for _ in range(2):
        clock.now += 5.0
        progress.advance("block")
    assert [line[19:] for line in stream.getvalue().splitlines()] == [
        "prune: 1 steps",
        "prune 1/1: block",
        "prune 2: block",
    ]


def test_a_step_outside_of_a_stage_is_ignored():
    stream = io.StringIO()
    PlainProgress(stream).advance("x")
    assert stream.getvalue() == ""


def test_terminal():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, legacy_windows=False)
    progress = RichProgress(console)
    try:
        progress.advance("before any stage")
        progress.stage("prune [x]", 2)
        progress.advance("block [0]")
        progress.info("[note]")
        progress.advance("block [1]")
        progress.stage("export")
    finally:
        progress.close()
    text = stream.getvalue()
    assert "prune [x]" in text and "2/2 · " in text and "[note]" in text and "export" in text


def test_open_progress_chooses():
    plain = Console(file=io.StringIO())
    with open_progress(plain) as progress:
        assert isinstance(progress, PlainProgress)
    with open_progress(plain, quiet=True) as progress:
        assert isinstance(progress, NullProgress)
        progress.stage("x", 1)
        progress.advance()
        progress.info("x")
    assert plain.file.getvalue() == ""  # type: ignore[attr-defined]
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError), open_progress(terminal) as progress:
        assert isinstance(progress, RichProgress)
        raise ValueError
    assert "\x1b[?25h" in terminal.file.getvalue(), "the cursor comes back after an error"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (99_950, "100 kB"), (999_499, "999 kB"), (999_500, "1.00 MB")]
    + [(12_345_678, "12.3 MB"), (5 * 10**9, "5.00 GB"), (10**16, "10000 TB")],
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (59.9, "59.9s"), (59.96, "1m 00s"), (125, "2m 05s"), (3599.6, "1h 00m"), (7320, "2h 02m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_memory_is_that_of_this_process():
    assert 10_000_000 < process_memory() < 1 << 40
