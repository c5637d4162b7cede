"""How a process ends: asked to by a signal as by Ctrl-C, and never later than the process that it works for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1
_ENDING = ("SIGTERM", "SIGHUP")
"""Sent by `docker stop`, by CI systems that cancel a job, and when a terminal is closed."""


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP raise KeyboardInterrupt, so that whatever runs ends and cleans up as on Ctrl-C.

    A signal that is ignored stays so (`nohup`). In another thread than the main one nothing can be set, and nothing is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler == signal.SIG_DFL:
                signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def end_with(parent: int) -> None:
    """Let the system kill this process when its parent process ends, however that comes about (Linux).

    Args:
        parent: its process id; where that has ended already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
