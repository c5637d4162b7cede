"""Timing and evaluation of graphs in a process of their own: a hostile or damaged graph can end its process.

ONNX Runtime is native code: a division that overflows in a graph raises a signal, not an exception. PyTorch models are
measured in this process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, ModelError, ResourceError, described, restored, summary
from compressor.machine.fresh import Ended, run_preloaded
from compressor.machine.libraries import calm_libraries
from compressor.machine.progress import NullProgress, Progress
from compressor.machine.shortage import is_shortage, mentions_shortage, shortage
from compressor.measure.benchmark import Footprint, Phase, Series, Timing
from compressor.pipeline import judge
from compressor.pipeline.judge import Evaluation
from compressor.storage.artifact import runtime_model


def bench(
    artifact: str,
    *,
    progress: Progress,
    against: str | None = None,
    threads: int = 1,
    batch: int = 1,
    length: int | None = None,
    rounds: int = 15,
) -> Timing:
    """Time a model or artifact; see `compressor.pipeline.judge.bench`.

    Raises:
        CompressorError: what that raises; ModelError where a graph ends its process.
    """
    given = {"against": against, "threads": threads, "batch": batch, "length": length, "rounds": rounds}
    if not _has_graph(artifact, against):
        return judge.bench(artifact, progress=progress, **given)  # type: ignore[arg-type]
    progress.stage("time")
    return _timing(_alone("bench", artifact, given))


def evaluate(
    path: str,
    *,
    data: str,
    progress: Progress,
    metrics: Sequence[str] = (),
    against: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    threads: int = 1,
) -> Evaluation:
    """Measure the quality of a model or artifact; see `compressor.pipeline.judge.evaluate`.

    Raises:
        CompressorError: what that raises; ModelError where a graph ends its process.
    """
    given = {
        "data": data,
        "metrics": list(metrics),
        "against": against,
        "samples": samples,
        "length": length,
        "threads": threads,
    }
    if not _has_graph(path, against):
        return judge.evaluate(path, progress=progress, **given)  # type: ignore[arg-type]
    progress.stage("evaluate")
    return Evaluation(**_alone("evaluate", path, given))


def _has_graph(*names: str | None) -> bool:
    """Tell whether one of some models, of which a hub id has none, is a graph."""
    return any(name is not None and runtime_model(Path(name).expanduser()) is not None for name in names)


def _alone(function: str, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Call a function of `judge` in a process of its own; return its result as JSON values."""
    with tempfile.TemporaryDirectory(prefix="compressor-alone-") as folder:
        job, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        job.write_text(json.dumps({"function": function, "path": path, "given": given}), encoding="utf-8")
        done = run_preloaded("compressor.pipeline.alone", str(job), str(answer), threads=given["threads"])
        if not answer.is_file():
            raise _crash(path, done)
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in result:
        raise restored(result["error"])
    return result


def _crash(path: str, done: Ended) -> CompressorError:
    if done.code == -9 or mentions_shortage(done.last_line):
        return ResourceError(f"{path}: the process that ran it was ended, most likely for want of memory")
    if done.code < 0:
        return ModelError(
            f"{path}: the graph ended the process that ran it (signal {-done.code})",
            hint="Do not use it; export the model again.",
        )
    return CompressorError(f"{path}: the process that ran it ended with exit code {done.code}: {done.last_line}")


def _unusable(path: str, error: Exception) -> ModelError:
    return ModelError(
        f"{path}: the graph cannot be measured: {type(error).__name__}: {summary(error)}",
        hint="See what `compressor verify` says of it.",
    )


def _timing(data: dict[str, Any]) -> Timing:
    """Return what `asdict` made of a timing."""

    def phase(entry: dict[str, Any]) -> Phase:
        other = None if entry["other"] is None else Series(**entry["other"])
        return Phase(**{**entry, "ours": Series(**entry["ours"]), "other": other})

    other = None if data["other"] is None else Footprint(**data["other"])
    phases = [phase(entry) for entry in data["phases"]]
    return Timing(**{**data, "phases": phases, "ours": Footprint(**data["ours"]), "other": other})


def main(job: Path, answer: Path) -> int:
    """Do what a job says and write the result, or the error, as JSON; return the exit code."""
    asked = json.loads(job.read_text(encoding="utf-8"))
    function: Callable[..., Timing | Evaluation] = judge.bench if asked["function"] == "bench" else judge.evaluate
    code = 0
    try:
        with calm_libraries():
            result: dict[str, Any] = asdict(function(asked["path"], progress=NullProgress(), **asked["given"]))
    except CompressorError as error:
        result, code = {"error": described(error)}, error.exit_code
    except Exception as error:  # ONNX Runtime's exceptions share no base class, and outputs may be of any shape
        known = shortage(error) if is_shortage(error) else _unusable(asked["path"], error)
        result, code = {"error": described(known)}, known.exit_code
    answer.write_text(json.dumps(result), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
