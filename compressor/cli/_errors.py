"""Every way in which a command can end badly, as one block on stderr and an exit code."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from compressor.errors import CompressorError, Interrupted, ResourceError, UsageError
from compressor.machine.shortage import is_shortage, shortage

ISSUES = "Please report this, with what `compressor --debug ...` (the same command) and `compressor doctor` print."

_UNREAD = 128 + 13
"""The exit code where SIGPIPE ends a process; it is no verdict."""


class Commands(TyperGroup):
    """The root of the commands; turns what they raise into exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            typer.Exit: with the exit code of whatever went wrong.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _end(ctx, Interrupted("interrupted", hint=_resume_hint(ctx)), error)
        except CompressorError as error:
            _end(ctx, error, error)
        except Exception as error:
            if isinstance(error, typer.Exit | typer.Abort) or _is_usage(error):
                raise
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever read our output has gone; the runner of commands knows what to do
            _end(ctx, _known(error), error)


def _is_usage(error: Exception) -> bool:
    """Tell whether this is about the command line; typer shows those itself and exits with 2."""
    return type(error).__module__.partition(".")[0] in ("click", "typer")


def _known(error: Exception) -> CompressorError:
    """Return the error of ours that a library's error amounts to."""
    if is_shortage(error):
        return shortage(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        where = f" ({error.filename})" if error.filename else ""
        return ResourceError(f"no room left on disk{where}", hint="Free some, or choose another folder with -o.")
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return UsageError(f"{error.filename}: {error.strerror}", hint="Check the path and its permissions.")
    return CompressorError(
        f"internal error: {type(error).__name__}: {_first_line(str(error)) or 'no message'}", hint=ISSUES
    )


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
"""What the file system says of a path that the user can mend."""


def _first_line(text: str) -> str:
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "")


def _resume_hint(ctx: Any) -> str | None:
    if ctx.invoked_subcommand != "run":
        return None
    return "What is finished is kept; the same command with --resume goes on."


def _end(ctx: Any, shown: CompressorError, cause: BaseException) -> NoReturn:
    """Print the error, and the traceback where asked for, and exit with its code."""
    if ctx.params.get("debug"):
        traceback.print_exception(cause, file=sys.stderr)
    show_error(shown)
    raise typer.Exit(shown.exit_code) from None


def show_error(error: CompressorError) -> None:
    """Print an error and its next step to stderr, without markup and control characters."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), visible(error.message)))
    if error.hint:
        console.print(Text.assemble(("next:  ", "bold"), visible(error.hint)))


def end_unread() -> int:
    """Say nothing more, because nobody reads it (`| head -1`); return the exit code that a shell has for that."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what is still buffered
        os.dup2(nowhere, stream)
    return _UNREAD


def end_now(code: int) -> NoReturn:
    """End this process with an exit code, without a second of taking down all that torch and transformers have made."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:
        code = end_unread()
    except OSError as error:
        shown = _known(error)
        show_error(shown)
        code = shown.exit_code
    atexit._run_exitfuncs()
    os._exit(code)


def visible(text: str) -> str:
    """Return text with its control characters (line ends excepted) replaced, so that a file's name stays a name."""
    return "".join(char if char == "\n" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
