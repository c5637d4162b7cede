"""What an input made the process do beside its work: writes, processes, network, questions, foreign code and files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_CHANGES = frozenset(
    ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.utime")
)
_STARTS = frozenset(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"))
_TRIAL = "compressor.data.tokenizer_trial"
"""The process that the package itself starts over a tokenizer, which may crash it."""
_REACHES = frozenset(("socket.connect", "socket.getaddrinfo", "socket.sendto"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


READS = "reads a file outside of the input's folder"


class Watch:
    """Hears Python's audit events of this process; what native code does by itself it does not hear."""

    def __init__(self, scratch: Path, secret: Path) -> None:
        """Keep where writing is allowed, and the file that nothing may read."""
        self._root, self._secret = f"{os.path.realpath(scratch)}/", os.path.realpath(secret)
        self._found: list[str] = []
        self._deaf = False
        sys.addaudithook(self._hear)

    def take(self) -> list[str]:
        """Return what was heard since the last call."""
        found, self._found = self._found, []
        return found

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._deaf or not event.startswith(("open", "os.", "subprocess.", "socket.", "builtins.input", "exec")):
            return
        self._deaf = True  # resolving a path raises events too
        try:
            self._judge(event, arguments)
        finally:
            self._deaf = False

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self._opened(os.fsdecode(arguments[0]), int(arguments[2] or 0))
        elif event in _CHANGES:
            self._changed(event, arguments)
        elif event in _STARTS and _TRIAL not in repr(arguments[1:2]):
            self._found.append(f"starts a process ({event})")
        elif event in _REACHES:
            self._found.append(f"reaches for the network ({event})")
        elif event == "builtins.input":
            self._found.append("asks on the terminal")
        elif event == "exec":
            name = str(getattr(arguments[0], "co_filename", ""))
            if name.startswith(self._root) or "transformers_modules" in name:
                self._found.append(f"runs code of the input ({Path(name).name})")

    def _opened(self, path: str, flags: int) -> None:
        if flags & _WRITING:
            self._written(path)
        elif os.path.abspath(path).startswith(self._root) and os.path.realpath(path) == self._secret:
            self._found.append(READS)

    def _changed(self, event: str, arguments: tuple[Any, ...]) -> None:
        descriptor = arguments[-1] if isinstance(arguments[-1], int) else -1
        base = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else ""
        places = {"os.symlink": arguments[1:2], "os.rename": arguments[:2], "os.link": arguments[1:2]}
        for path in places.get(event, arguments[:1]):
            if isinstance(path, str | bytes | os.PathLike):
                place, name = os.path.split(os.path.join(base, os.fsdecode(path)))
                self._written(os.path.join(os.path.realpath(place), name), link=True)

    def _written(self, path: str, *, link: bool = False) -> None:
        """Judge a change of a file; with `link`, of the directory entry itself and not of what it may lead to."""
        if "\0" in path or path == os.devnull or "__pycache__" in path:
            return
        if not f"{os.path.abspath(path) if link else os.path.realpath(path)}/".startswith(self._root):
            self._found.append(f"writes outside of the scratch folder ({path})")
