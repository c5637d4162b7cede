"""Timing and evaluation of graphs in a process of their own: a hostile or damaged graph can end its process.

ONNX Runtime is native code: a division that overflows in a graph raises a signal, not an exception. PyTorch models are
measured in this process.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from compressor.errors import CompressorError, ModelError, ResourceError, summary
from compressor.machine.asking import answer, ask, known_shortage
from compressor.machine.fresh import Ended
from compressor.machine.libraries import calm_libraries
from compressor.machine.retold import WrittenProgress, retell
from compressor.machine.shortage import mentions_shortage
from compressor.measure.timing import Footprint, Phase, Series, Timing
from compressor.pipeline import judge
from compressor.pipeline.judge import Evaluation
from compressor.pipeline.laid_out import has_graphs
from compressor.storage.artifact import runtime_model

P = ParamSpec("P")
T = TypeVar("T")


def _alone(
    function: Callable[Concatenate[str, P], T], restore: Callable[[dict[str, Any]], T]
) -> Callable[Concatenate[str, P], T]:
    """Return a function of `judge` that does its work in a process of its own where one of the models is a graph.

    It raises what that raises, and ModelError where a graph ends its process.

    Args:
        function: of `judge`; its first parameter is the path of a model.
        restore: makes the result of what `asdict` made of it.
    """

    @functools.wraps(function)
    def measured(path: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        given: dict[str, Any] = dict(kwargs)
        progress = given.pop("progress")
        if not _has_graph(path, given.get("against")):
            return function(path, *args, **kwargs)
        request = {"function": function.__name__, "path": path, "given": given}
        data = ask(
            __name__,
            request,
            crashed=lambda done: _crash(path, done),
            threads=given.get("threads", 1),
            heard=lambda line: retell(line, progress),
        )
        return restore(data)

    return measured


def _has_graph(*names: Any) -> bool:
    """Tell whether one of some models, of which a hub id has none, is a graph."""
    folders = [Path(name).expanduser() for name in names if name is not None]
    return any(runtime_model(folder) is not None or has_graphs(folder) for folder in folders)


def _crash(path: str, done: Ended) -> CompressorError:
    if done.code == -9 or mentions_shortage(done.last_line):
        return ResourceError(f"{path}: the process that ran it was ended, most likely for want of memory")
    if done.code < 0:
        return ModelError(
            f"{path}: the graph ended the process that ran it (signal {-done.code})",
            hint="Do not use it; export the model again.",
        )
    return CompressorError(f"{path}: the process that ran it ended with exit code {done.code}: {done.last_line}")


def _timing(data: dict[str, Any]) -> Timing:
    """Return what `asdict` made of a timing."""

    def phase(entry: dict[str, Any]) -> Phase:
        other = None if entry["other"] is None else Series(**entry["other"])
        return Phase(**{**entry, "ours": Series(**entry["ours"]), "other": other})

    other = None if data["other"] is None else Footprint(**data["other"])
    phases = [phase(entry) for entry in data["phases"]]
    return Timing(**{**data, "phases": phases, "ours": Footprint(**data["ours"]), "other": other})


bench = _alone(judge.bench, _timing)
evaluate = _alone(judge.evaluate, lambda data: Evaluation(**data))


def _carry_out(request: Path) -> dict[str, Any]:
    asked = json.loads(request.read_text(encoding="utf-8"))
    function: Callable[..., Timing | Evaluation] = judge.bench if asked["function"] == "bench" else judge.evaluate
    with calm_libraries():
        return asdict(function(asked["path"], progress=WrittenProgress(sys.stdout), **asked["given"]))


def main(request: Path, place: Path) -> int:
    """Do what a request says and write the result, or the error, as JSON; return the exit code."""

    def known(error: Exception) -> CompressorError:
        """Return what is wrong: ONNX Runtime's exceptions share no base class, and outputs may be of any shape."""
        path = json.loads(request.read_text(encoding="utf-8"))["path"]
        unusable = ModelError(
            f"{path}: the graph cannot be measured: {type(error).__name__}: {summary(error)}",
            hint="See what `compressor verify` says of it.",
        )
        return known_shortage(error) or unusable

    return answer(request, place, _carry_out, known)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
