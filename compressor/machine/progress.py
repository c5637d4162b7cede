"""What a long run tells the person who waits for it: stage, block k of n, time left, memory of this process.

On a terminal one line is redrawn; elsewhere (a log, a CI job) plain lines appear, few enough to be read. It belongs on
stderr: stdout is for results.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBar

Clock = Callable[[], float]

_QUIET_SECONDS = 2.0
"""Between two plain lines of one stage; the last line of a stage always appears."""
_LATEST = 3
"""Steps by whose pace the time left is told: those of a stage need not be alike."""


class Progress(Protocol):
    """Where a run reports how far it is."""

    def expect(self, stages: int) -> None:
        """Say how many stages follow; they are then numbered."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage of `total` steps, or of an unknown number; it ends the one before."""

    def advance(self, note: str = "") -> None:
        """Finish one step; `note` says what it was."""

    def info(self, message: str) -> None:
        """Say something that is worth keeping on screen."""


class NullProgress:
    """Says nothing."""

    def expect(self, stages: int) -> None:
        """Ignore the number."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Ignore the stage."""

    def advance(self, note: str = "") -> None:
        """Ignore the step."""

    def info(self, message: str) -> None:
        """Ignore the message."""


class _Numbers:
    """Numbers the stages, once it is known how many there are."""

    def __init__(self) -> None:
        self._expected = self._numbered = 0

    def expect(self, stages: int) -> None:
        """Say how many stages follow."""
        self._expected, self._numbered = stages, 0

    def titled(self, name: str) -> str:
        """Return the name of the stage that begins now, `[2/6] width` where its number is known."""
        self._numbered += 1
        return f"[{self._numbered}/{self._expected}] {name}" if self._numbered <= self._expected else name


class _Stage:
    """How far the current stage is."""

    def __init__(self, name: str, total: int | None, now: float) -> None:
        self.name = name
        self.total = total
        self.begun = now
        self.done = 0
        self._ends = deque([now], maxlen=_LATEST + 1)

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done == self.total

    def count(self) -> str:
        """Return `3/12`, `3` where the total is unknown or was too low, or nothing before the first step."""
        if self.total is not None and self.done <= self.total:
            return f"{self.done}/{self.total}"
        return str(self.done) if self.done else ""

    def left(self, now: float) -> float | None:
        """Return the seconds that the rest takes at the pace of the latest steps, None where that is unknown.

        To be called at the end of each step.
        """
        self._ends.append(now)
        if not self.total or not self.done or self.done >= self.total:
            return None
        return (now - self._ends[0]) / (len(self._ends) - 1) * (self.total - self.done)


class PlainProgress(_Numbers):
    """Writes lines such as `[  12.3s  512 MB] [2/6] prune 3/12: block 2, 41s left`."""

    def __init__(
        self, stream: TextIO, *, clock: Clock = time.monotonic, memory: Callable[[], int] | None = None
    ) -> None:
        """Write to `stream`; `clock` (seconds) and `memory` (bytes) are replaced in tests."""
        super().__init__()
        self._stream = stream
        self._clock = clock
        self._memory = memory or process_memory
        self._begun = clock()
        self._stage: _Stage | None = None
        self._written = -_QUIET_SECONDS
        self._pending: str | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        """Write the stage's name."""
        self.close()
        name = self.titled(name)
        self._stage = _Stage(name, total, self._clock())
        self._write(f"{name}: {total} steps" if total else name)

    def advance(self, note: str = "") -> None:
        """Write the step, unless the last line is fresh; a step that is held back appears if it ends the stage."""
        stage = self._stage
        if stage is None:
            return
        stage.done += 1
        now = self._clock()
        left = stage.left(now)
        rest = [note] if note else []
        if left is not None:
            rest.append(f"{duration(left)} left")
        line = f"{stage.name} {stage.count()}" + (f": {', '.join(rest)}" if rest else "")
        if stage.finished or now - self._written >= _QUIET_SECONDS:
            self._write(line)
        else:
            self._pending = line

    def info(self, message: str) -> None:
        """Write the message."""
        self._write(message)

    def close(self) -> None:
        """Write the last step of the stage if it was held back."""
        if self._pending is not None:
            self._write(self._pending)
        self._stage = None

    def _write(self, line: str) -> None:
        now = self._clock()
        self._written = now
        self._pending = None
        self._stream.write(f"[{now - self._begun:7.1f}s {size(self._memory()):>7}] {line}\n")
        self._stream.flush()


class RichProgress(_Numbers):
    """Redraws one line on a terminal; a finished stage leaves a line with its duration behind."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`; call `close` at the end."""
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        super().__init__()
        self._console = console
        self._stage: _Stage | None = None
        self._bar: RichBar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}", markup=True),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=False, compact=True),
            TextColumn("{task.fields[memory]}", style="dim", markup=False),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, count="", memory="", note="")
        self._bar.start()

    def stage(self, name: str, total: int | None = None) -> None:
        """Leave a line for the stage that ends here and begin to draw the next."""
        from rich.markup import escape

        self._end_stage()
        name = self.titled(name)
        self._stage = _Stage(name, total, time.monotonic())
        self._bar.reset(self._task, total=total, description=escape(name), **self._fields(""))

    def advance(self, note: str = "") -> None:
        """Move the bar by one step."""
        if self._stage is None:
            return
        self._stage.done += 1
        self._bar.update(self._task, advance=1, **self._fields(note))

    def info(self, message: str) -> None:
        """Print the message above the bar."""
        from rich.text import Text

        self._console.print(Text(message))

    def close(self) -> None:
        """End the stage and remove the bar."""
        self._end_stage()
        self._bar.stop()

    def _fields(self, note: str) -> dict[str, Any]:
        stage = self._stage
        return {"count": stage.count() if stage else "", "memory": size(process_memory()), "note": note}

    def _end_stage(self) -> None:
        from rich.text import Text

        stage = self._stage
        if stage is None:
            return
        took = duration(time.monotonic() - stage.begun)
        parts = [part for part in (stage.count(), took, size(process_memory())) if part]
        self._console.print(Text.assemble(stage.name, (f"  {' · '.join(parts)}", "dim")))
        self._stage = None


@contextmanager
def open_progress(console: Console, *, quiet: bool = False) -> Iterator[Progress]:
    """Give the progress that fits `console` (stderr) and close it at the end, also after an error.

    Args:
        console: a terminal gets a bar, anything else plain lines.
        quiet: say nothing.
    """
    if quiet:
        yield NullProgress()
        return
    progress = RichProgress(console) if console.is_terminal else PlainProgress(console.file)  # type: ignore[arg-type]
    try:
        yield progress
    finally:
        progress.close()


def process_memory() -> int:
    """Return the bytes of memory that this process occupies now (resident set)."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def size(count: int) -> str:
    """Return bytes in decimal units with three figures: `512 MB`, `1.23 GB`."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    digits = 0 if units[0] == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[0]}"


def duration(seconds: float) -> str:
    """Return `3.2s`, `2m 05s` or `1h 02m`."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"
