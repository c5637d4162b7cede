"""The campaign: inputs by seed and index, each read in a worker process that is watched from outside.

An input is right when it is accepted, or refused by an error of the package with an exit code that fits its kind. It is
a fault when anything else is raised, when the process dies, waits for ever, or takes more than `CPU_SECONDS`, and when
it writes outside of its scratch folder, starts a process, reaches for the network, asks on the terminal, runs code of
the input or reads a file outside of its folder. An artifact that was altered must fail a check.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Protocol

import psutil

from compressor.errors import CompressorError
from tests.fuzz.artifacts import Artifacts
from tests.fuzz.data import Data
from tests.fuzz.models import Models
from tests.fuzz.mutations import SECRET
from tests.fuzz.recipes import Recipes
from tests.fuzz.watch import Watch

CPU_SECONDS = 5.0
"""What one input may take."""
_ENDLESS = 30.0
"""CPU seconds after which a worker is ended."""
_MEMORY = 4 << 30
"""Bytes of address space that an input may ask for."""
_ORDER = ["recipes", "models", "recipes", "data", "recipes", "artifacts", "recipes", "models", "recipes", "data"]
"""Kinds of ten inputs in a row."""
_IDLE_POLLS = 8
"""Seconds without CPU time after which a sleeping worker waits for ever."""


class Kind(Protocol):
    """A kind of input.

    Attributes:
        codes: exit codes with which it may be refused.
        allowed: what reading it may do, of what `Watch` hears.
    """

    codes: tuple[int, ...]
    allowed: tuple[str, ...]

    def attempt(self, rng: Random, folder: Path) -> str:
        """Make an input in `folder`, read it, and return how that ended; raises what reading it raises."""


KINDS: Mapping[str, Callable[[Path], Kind]] = MappingProxyType(
    {"recipes": Recipes, "models": Models, "data": Data, "artifacts": Artifacts}
)


@dataclass(frozen=True)
class Outcome:
    """How reading an input ended.

    Attributes:
        index: of the input.
        kind: name of its kind.
        result: in a few words; equal words are counted together.
        fault: what was wrong; empty where the input was handled rightly.
        seconds: CPU time.
        details: traceback of a fault.
    """

    index: int
    kind: str
    result: str
    fault: str = ""
    seconds: float = 0.0
    details: str = ""


def kind_of(index: int) -> str:
    """Return the name of an input's kind."""
    return _ORDER[index % len(_ORDER)]


def run(
    seed: int, indices: Sequence[int], scratch: Path, makers: Mapping[str, Callable[[Path], Kind]] = KINDS
) -> Iterator[Outcome]:
    """Read inputs in a worker process, and go on in another one when that dies; yield an outcome for each.

    Args:
        seed: of all inputs.
        indices: which inputs.
        scratch: folder for all that is written; it is made.
        makers: name of a kind of input -> what makes it.
    """
    scratch.mkdir(exist_ok=True)
    kinds = {name: makers[name](scratch / "bases") for name in sorted({kind_of(index) for index in indices})}
    rest = list(indices)
    while rest:
        for outcome in _worker(seed, rest, scratch, kinds):
            rest.remove(outcome.index)
            yield outcome


def _worker(seed: int, indices: list[int], scratch: Path, kinds: dict[str, Kind]) -> Iterator[Outcome]:
    """Yield what a forked worker answers, up to the first input that ends it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, seed, indices, scratch, kinds), daemon=True)
    process.start()
    theirs.close()
    try:
        for index in list(indices):
            answer = _answer(ours, psutil.Process(process.pid))
            if isinstance(answer, Outcome):
                yield answer
                continue
            process.kill()
            process.join()
            yield _ended(index, answer or f"the process died of signal {-(process.exitcode or 0)}")
            return
    finally:
        process.kill()
        process.join()
        ours.close()


def _answer(pipe: Connection, process: psutil.Process) -> Outcome | str:
    """Wait for the next outcome; return why there is none: the worker waits for ever or takes too long, or has died."""
    idle, start = 0, _cpu(process)
    before = start
    while not pipe.poll(1.0):
        now = _cpu(process)
        idle = idle + 1 if now == before and process.status() in (psutil.STATUS_SLEEPING, "disk-sleep") else 0
        before = now
        if idle >= _IDLE_POLLS:
            return "the process waits for ever"
        if now - start > _ENDLESS:
            return f"more than {_ENDLESS:.0f} CPU seconds"
    try:
        outcome: Outcome = pipe.recv()
    except EOFError:
        return ""
    return outcome


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ended(index: int, why: str) -> Outcome:
    """Return the outcome of an input that ended its worker; `verify` opens artifacts in a process of their own."""
    kind = kind_of(index)
    if kind == "artifacts" and "died" in why:
        return Outcome(index, kind, "found: its process died")
    return Outcome(index, kind, "fault", why)


def _work(pipe: Connection, seed: int, indices: list[int], scratch: Path, kinds: dict[str, Kind]) -> None:
    """Read the inputs, in the worker, and send an outcome for each."""
    with (scratch / "worker.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    faulthandler.disable()  # a worker that dies is told about by an outcome
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tempfile.tempdir = str(scratch)
    watch = Watch(scratch, scratch / "input" / SECRET)
    for index in indices:
        pipe.send(_attempt(seed, index, scratch / "input", kinds[kind_of(index)], watch))


def _attempt(seed: int, index: int, folder: Path, kind: Kind, watch: Watch) -> Outcome:
    shutil.rmtree(folder, ignore_errors=True)  # what an input that ended its worker has left
    folder.mkdir()
    (folder / SECRET).write_text("not to be read\n")
    watch.take()
    start = time.process_time()
    fault = details = ""
    try:
        result = kind.attempt(Random(f"{seed}:{index}"), folder)
    except CompressorError as error:
        result = f"refused, exit code {error.exit_code}"
        if error.exit_code not in kind.codes:
            fault, details = f"{type(error).__name__}: {error.message}"[:300], traceback.format_exc()
    except MemoryError:
        result = "refused, exit code 5"
    except BaseException as error:  # a panic of a library in Rust is no Exception
        result, fault, details = "fault", _signature(error), traceback.format_exc()
    seconds = time.process_time() - start
    if heard := [event for event in watch.take() if event not in kind.allowed]:
        fault = "; ".join(dict.fromkeys([*([fault] if fault else []), *heard]))
    if seconds > CPU_SECONDS:
        fault = f"{fault}; " * bool(fault) + f"more than {CPU_SECONDS:.0f} CPU seconds"
    return Outcome(index, kind_of(index), "fault" if fault else result, fault, seconds, details)


def _signature(error: BaseException) -> str:
    """Return the type of an error, its message, and the last place of the package that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/compressor/" in frame.filename]
    place = f" in {frames[-1].filename.rpartition('/compressor/')[2]} {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{place}: {str(error).splitlines()[0][:160] if str(error) else ''}"
