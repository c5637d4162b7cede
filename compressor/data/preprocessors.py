"""The tokenizer and the image processor of a model folder: opened without code of the folder, and without a crash.

Both come from files of somebody else. transformers would ask on the terminal whether to run their code; the tokenizers
library, which is written in Rust, panics at some damaged files and ends the process at others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, DataError, ResourceError, brief, summary
from compressor.machine.fresh import run_module
from compressor.machine.shortage import mentions_shortage, raise_shortage
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json

TOKENIZER = "tokenizer.json"
_TOKENIZERS = (TOKENIZER, "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_PROCESSOR = "preprocessor_config.json"
_LARGEST_SIDE = 4096
_SECONDS = 120.0
_CODE_HINT = (
    "Code of a model folder is run only by a recipe that says model.trust_remote_code: true. Give a tokenizer or"
    " processor of a class that transformers has."
)


@contextmanager
def library_calls(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a damaged file, a panic included, into an error that says `what` is wrong.

    Raises:
        DataError: something was raised.
        ResourceError: memory ran out.
    """
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise_shortage(error)
        if "trust_remote_code" in str(error):
            raise DataError(f"{what} asks for code of its own, which was not run", hint=_CODE_HINT) from None
        raise DataError(f"{what} cannot be used: {summary(error)}") from error
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise DataError(f"{what} cannot be used: the tokenizers library gave up: {summary(error)}") from None


def load_tokenizer(folder: Path, where: str = "model.id", *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder.

    Args:
        folder: the model folder.
        where: recipe key that a message names.
        trust_remote_code: whether the user has asked for the folder's own code.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    what = f"{where}: the tokenizer of {folder.name}"
    files = [file for name in _TOKENIZERS if (file := own_file(folder, name)) is not None]
    if not files:
        raise DataError(f"{where}: {folder.name} has no tokenizer", hint="Copy tokenizer.json beside config.json.")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"):
        if (file := own_file(folder, name)) is not None:
            read_json(file)
    if files[0].name == TOKENIZER:
        try_tokenizer(files[0], what)
    with library_calls(what):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)


def try_tokenizer(file: Path, what: str) -> None:
    """Open a tokenizer.json in a process of its own, which it may crash, and encode a text there.

    Raises:
        DataError: it cannot be used.
        ResourceError: memory ran out.
    """
    status = file.stat()
    problem = _crash(str(file.resolve()), status.st_size, status.st_mtime_ns)
    if problem is not None and mentions_shortage(problem):
        raise ResourceError(f"out of memory while {what} was opened")
    if problem is not None:
        raise DataError(f"{what} cannot be used: {TOKENIZER}: {problem}", hint="Download or copy it again.")


@functools.lru_cache(maxsize=16)
def _crash(file: str, size: int, changed: int) -> str | None:
    """Return what becomes of a process that opens a tokenizer file of that size and time of change; None if nothing."""
    try:
        done = run_module("compressor.data.tokenizer_trial", file, timeout=_SECONDS)
    except TimeoutError:
        return f"opening it and encoding one line takes more than {_SECONDS:.0f} s"
    if done.code == 0:
        return None
    if done.code > 0 and done.stdout.strip():
        return summary(ValueError(done.stdout))
    how = f"signal {-done.code}" if done.code < 0 else summary(ValueError(done.last_line))
    return f"it crashes the tokenizers library ({how})"


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the image processor of a model folder.

    Args:
        folder: the model folder.
        trust_remote_code: whether the user has asked for the folder's own code.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    file = own_file(folder, _PROCESSOR)
    if file is None:
        raise DataError(f"model.id: {folder.name} has no {_PROCESSOR}, so images cannot be prepared")
    _check_sides(read_json(file))
    with library_calls(f"model.id: the image processor of {folder.name}"):
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, backend="pil", trust_remote_code=trust_remote_code
        )


def _check_sides(stated: dict[str, Any]) -> None:
    for key in ("size", "crop_size", "pad_size"):
        value = stated.get(key)
        for side in value.values() if isinstance(value, dict) else [value]:
            if isinstance(side, int | float) and not 0 < side <= _LARGEST_SIDE:
                raise DataError(
                    f"{_PROCESSOR}: {key} is {brief(value)}; allowed: sides of 1 to {_LARGEST_SIDE} pixels",
                    hint="Take it from the same place as the weights.",
                )


def _is_panic(error: BaseException) -> bool:
    """Tell whether an error is a panic of a library in Rust, which its bindings derive from BaseException."""
    return type(error).__name__ == "PanicException" and type(error).__module__.startswith("pyo3")
