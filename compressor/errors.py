"""Every error that a user can meet, and the exit code of each.

CompressorError                     1
├── UsageError                      2   wrong arguments
│   └── RecipeError                 2   wrong recipe: carries all problems at once
├── ModelError                      3   the model cannot be read, is damaged or is not covered
├── DataError                       3   calibration or evaluation data cannot be used
├── VerificationError               4   the artifact is not what it should be
├── ResourceError                   5   no room in memory or on disk
└── Interrupted                     130 stopped by the user; the work done is kept

An error says what is wrong, where (the recipe key or the file), what was given, what is allowed, and the next step.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


class CompressorError(Exception):
    """Root of the tree. Its message is shown to the user as it is, without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep the message and the next step (`hint`), which is shown on a line of its own."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, and the next step on a second line."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(CompressorError):
    """Wrong arguments on the command line or in a call."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe.

    Attributes:
        where: dotted recipe key, such as `passes[0].cfsp.sparsity`.
        message: what is wrong, what was given and what is allowed.
        line: 1-based line in the file; None when the key is not in it (an override, a missing key).
    """

    where: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        """Return `line 7: passes[0].cfsp.sparsity: message`."""
        place = f"line {self.line}: " if self.line is not None else ""
        return f"{place}{self.where}: {self.message}" if self.where else f"{place}{self.message}"


class RecipeError(UsageError):
    """A recipe with one or more problems, all of which it carries."""

    def __init__(self, problems: Iterable[Problem], *, source: str = "recipe") -> None:
        """Sort the problems by line and render them, one a line, under the name of their source."""
        self.problems = sorted(problems, key=lambda p: (p.line is None, p.line or 0, p.where))
        self.source = source
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))


class ModelError(CompressorError):
    """A model that is missing, damaged, of an uncovered family, or too small for what is asked."""

    exit_code = 3


class DataError(CompressorError):
    """Calibration or evaluation data that is missing, too short or of the wrong kind."""

    exit_code = 3


class VerificationError(CompressorError):
    """An artifact that is not what it claims to be, or misses its bounds."""

    exit_code = 4


class ResourceError(CompressorError):
    """Memory or disk ran out."""

    exit_code = 5


class Interrupted(CompressorError):
    """The user stopped the run; finished blocks are kept and `--resume` goes on from them."""

    exit_code = 130


def described(error: CompressorError) -> dict[str, Any]:
    """Return an error as JSON values, for another process."""
    return {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def restored(data: Mapping[str, Any]) -> CompressorError:
    """Return the error that `described` described; of several kinds with one exit code, the first in the tree."""
    kinds = {kind.exit_code: kind for kind in (UsageError, ModelError, VerificationError, ResourceError, Interrupted)}
    return kinds.get(data["exit_code"], CompressorError)(data["message"], hint=data["hint"])


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest allowed word, or an empty string."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def brief(value: Any, most: int = 60) -> str:
    """Return a value for a message: its `repr` on one line, cut to `most` characters."""
    try:
        text = repr(value[: 2 * most] if isinstance(value, str | bytes | list | tuple) else value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints; a value nested in itself
        text = f"a {type(value).__name__} that is too large to show"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def summary(error: BaseException, most: int = 300) -> str:
    """Return what a library's error says on one line: without C++ frames and notes on warnings, cut to `most`.

    An error without a message gives the name of its class.
    """
    text = " ".join(_FRAMES.split(str(error), maxsplit=1)[0].split())
    text = "".join(char for char in text if char.isprintable()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


_FRAMES = re.compile(r"(?m)^\s*(Exception raised from |frame #0|C\+\+ CapturedTraceback)")
