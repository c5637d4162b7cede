"""Side-by-side timing of two models: one process, both loaded and warm, rounds interleaved, fixed threads.

A round times ours and the other one after the other (the order alternates), each over enough calls to fill a few tens
of milliseconds. The model that warms up first is often a few percent slower than its own copy for as long as the
process lives, wherever its memory came to lie; so two models sit twice, opened afresh and in the other order.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.architectures import EMBEDDINGS, GRAPHS, OWN_TYPE, family_named
from compressor.architectures.tasks import TASKS
from compressor.data.kinds import Inputs
from compressor.errors import ModelError, UsageError
from compressor.machine import memory as process
from compressor.machine.fresh import run_module
from compressor.measure.opening import open_runner
from compressor.measure.runner import Runner, question_width, read_config
from compressor.measure.timing import Footprint, Phase, Series, Timing
from compressor.model.image_size import other_size
from compressor.storage.artifact import runtime_model

MIN_ROUNDS = 3
"""Rounds of a sitting, however slow the models are."""
_CALL_SECONDS = 0.03
_QUESTION = 16
"""Tokens of a question that an image is seen for, where the model reads one."""
_Phases = dict[tuple[str, int, int, int], list[Series]]
"""Name, batch, length and tokens of a phase -> one series per model."""


@dataclass(frozen=True)
class _Work:
    """What the models are given in every sitting; see `compare`."""

    folders: Sequence[Path]
    threads: int
    batches: Sequence[int]
    length: int | None
    shorter: int
    seed: int


def compare(
    ours: Path,
    other: Path | None = None,
    *,
    threads: int = 1,
    batch: int | Sequence[int] = 1,
    length: int | None = None,
    shorter: int = 0,
    rounds: int = 15,
    seconds: float = 8.0,
    memory: bool = True,
    seed: int = 0,
) -> Timing:
    """Time one model, or two side by side.

    Args:
        ours: model or artifact folder.
        other: what to compare with, usually the dense export.
        threads: intra-op threads for both.
        batch: batch size, or several; the first one gives the headline figures.
        length: prefill length in tokens and cache length of the decode step (default 128; 64 for encoders), clipped to
            what the model's positions allow.
        shorter: by how many tokens the same prompt is shorter for ours, whose images have fewer features.
        rounds: interleaved rounds per phase; of two models half of them in each of two sittings.
        seconds: budget per phase; the rounds stop early, after at least `MIN_ROUNDS` in a sitting, when it is spent.
        memory: also measure peak memory, each model in a process of its own.
        seed: of the random inputs.

    Raises:
        UsageError: the models serve different tasks, or a number is not positive.
        ModelError: a model cannot be loaded.
    """
    batches = [batch] if isinstance(batch, int) else list(batch)
    if threads < 1 or rounds < 1 or not batches or min(batches) < 1 or (length is not None and length < 1):
        raise UsageError(
            f"threads, batch, length and rounds must be positive, got {threads}, {batches}, {length}, {rounds}"
        )
    folders = [Path(ours)] + ([Path(other)] if other is not None else [])
    work = _Work(folders, threads, batches, length, shorter, seed)
    taken: _Phases = {}
    sittings = [([0], rounds)] if other is None else [([0, 1], math.ceil(rounds / 2)), ([1, 0], rounds // 2)]
    for order, most in sittings:
        if most == 0:
            continue
        more = _sitting(work, order, most, seconds / len(sittings), taken)
        taken = {key: [a + b for a, b in zip(taken[key], new, strict=True)] if taken else new
                 for key, new in more.items()}  # fmt: skip
    clock = "cpu" if threads == 1 else "wall"
    phases = [
        Phase(name, count, size, tokens, clock, series[0], series[1] if len(series) > 1 else None)
        for (name, count, size, tokens), series in taken.items()
    ]
    size = phases[0].length
    prints = [Footprint(file_bytes(f), peak_memory(f, threads, batches[0], size) if memory else None) for f in folders]
    return Timing(threads, len(phases[0].ours.cpu), phases, prints[0], prints[1] if other is not None else None)


def file_bytes(folder: Path) -> int:
    """Return the bytes of what runs: `model.ort`, or `model.onnx` and its external data, or safetensors."""
    files = [f for f in Path(folder).iterdir() if f.is_file() and not f.is_symlink()]
    graph = runtime_model(Path(folder))
    graphs = (graph.name, *_beside(graph.name)) if graph is not None else (*GRAPHS, *EMBEDDINGS.values())
    onnx = [f for f in files if f.name.startswith(graphs)]
    weights = onnx or [f for f in files if f.suffix == ".safetensors"]
    return sum(f.stat().st_size for f in weights)


def _beside(graph: str) -> tuple[str, ...]:
    return (EMBEDDINGS[graph],) if graph in EMBEDDINGS else ()


def peak_memory(folder: Path, threads: int = 1, batch: int = 1, length: int = 64) -> int:
    """Return the bytes of resident memory that loading and running a model adds at its peak, in a fresh process.

    Raises:
        ModelError: the process failed.
    """
    job = json.dumps({"folder": str(Path(folder).resolve()), "threads": threads, "batch": batch, "length": length})
    done = run_module("compressor.measure.benchmark", job, threads=threads)
    if done.code != 0:
        raise ModelError(f"{folder}: measuring its memory failed: {done.last_line}")
    return int(json.loads(done.stdout)["bytes"])


def probe_inputs(runner: Runner, batch: int, length: int, vocabulary: int, seed: int = 0) -> Inputs:
    """Return seeded random inputs of a runner's task: token ids [B, T] with a full mask, or pixels [B, 3, H, W]."""
    rng = np.random.default_rng(seed)
    if runner.inputs == "pixels":
        channels, height, width = image_shape(runner.folder)
        found: Inputs = {"pixel_values": rng.standard_normal((batch, channels, height, width), dtype=np.float32)}
        if columns := question_width(read_config(runner.folder)):
            found["text_features"] = rng.standard_normal((batch, _QUESTION, columns), dtype=np.float32)
        return found
    ids = rng.integers(0, vocabulary, (batch, length), dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def image_shape(folder: Path) -> tuple[int, int, int]:
    """Return channels, height and width of the images that the model in a folder takes."""
    config = read_config(folder)
    family = family_named(str(config.get("model_type")).removeprefix(OWN_TYPE))
    size = other_size(folder, config, family) or config.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    return int(config.get("num_channels", 3)), int(height), int(width)


def _sitting(work: _Work, order: Sequence[int], rounds: int, seconds: float, taken: _Phases) -> _Phases:
    """Open the models in `order` and time all phases, in at most as many rounds as `taken` has, if it has any.

    Raises:
        UsageError: the models serve different tasks.
    """
    opened = {who: open_runner(work.folders[who], work.threads) for who in order}
    runners = [opened[who] for who in range(len(order))]
    tasks = [runner.task for runner in runners]
    if len(set(tasks)) > 1:
        names = [f"{folder} is for {task}" for folder, task in zip(work.folders, tasks, strict=True)]
        raise UsageError(f"{', '.join(names)}: not comparable")
    reads_pixels = runners[0].inputs == "pixels"
    size = 0 if reads_pixels else min(_usable_length(folder, tasks[0], work.length) for folder in work.folders)
    vocabulary = min(_vocabulary(folder) for folder in work.folders)
    found: _Phases = {}
    for count in work.batches:
        sizes = {who: max(1, size - work.shorter) if who == 0 and not reads_pixels else size for who in order}
        makers = {who: _phases(runners[who], count, sizes[who], vocabulary, work.seed) for who in order}
        for name, tokens in _phase_sizes(tasks[0], count, size):
            calls = {who: makers[who][name] for who in order}
            key = (name, count, size, tokens)
            before = taken.get(key)
            limits = (rounds, seconds) if before is None else (min(rounds, len(before[0].cpu)), math.inf)
            series = dict(zip(order, _interleave(list(calls.values()), *limits), strict=True))
            found[key] = [series[who] for who in range(len(order))]
    return found


def _usable_length(folder: Path, task: str, length: int | None) -> int:
    config = read_config(folder)
    limit = config.get("max_position_embeddings") or config.get("n_positions") or 1 << 20
    # The decode step needs one position after the cache.
    return max(1, min(length or TASKS[task].length, int(limit) - 1))


def _vocabulary(folder: Path) -> int:
    return int(read_config(folder).get("vocab_size") or 2)


def _phase_sizes(task: str, batch: int, length: int) -> list[tuple[str, int]]:
    """Return each phase with the tokens (or images) that one call of it processes."""
    return [(phase, batch if phase == "decode" else batch * max(length, 1)) for phase in TASKS[task].phases]


def _phases(runner: Runner, batch: int, length: int, vocabulary: int, seed: int) -> dict[str, Callable[[], Any]]:
    inputs = probe_inputs(runner, batch, length, vocabulary, seed)
    if "decode" not in TASKS[runner.task].phases:
        return {"forward": lambda: runner.forward(inputs)}
    step: Inputs = {
        "input_ids": inputs["input_ids"][:, :1],
        "attention_mask": np.ones((batch, length + 1), np.int64),
    }
    _, past = runner.extend(inputs)

    def decode() -> Any:
        # PyTorch's cache grows in place: crop it, so that every step starts from the same length.
        if hasattr(past, "crop") and (extra := past.get_seq_length() - length) > 0:
            past.crop(-extra)
        return runner.extend(step, past)

    return {"prefill": lambda: runner.extend(inputs), "decode": decode}


def _interleave(calls: list[Callable[[], Any]], rounds: int, seconds: float) -> list[Series]:
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, round(_CALL_SECONDS / max(time.perf_counter() - start, 1e-6))))
    repeat = min(max(repeats), 1000)
    series = [Series([], []) for _ in calls]
    deadline = time.perf_counter() + seconds
    for index in range(rounds):
        if index >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        order = range(len(calls)) if index % 2 == 0 else reversed(range(len(calls)))
        for who in order:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                calls[who]()
            series[who].cpu.append((time.process_time() - cpu) / repeat)
            series[who].wall.append((time.perf_counter() - wall) / repeat)
    return series


def _measure_memory(job: dict[str, Any]) -> int:
    """Load and run a model in this (fresh) process; return how far its resident memory rose above the bare imports."""
    folder = Path(job["folder"])
    if runtime_model(folder) is not None:
        import onnxruntime  # noqa: F401
    else:
        import transformers  # noqa: F401
    before = process.reset_peak()
    runner = open_runner(folder, job["threads"])
    calls = _phases(runner, job["batch"], job["length"], _vocabulary(folder), 0)
    for call in calls.values():
        call()
    return max(0, process.peak_memory() - before)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"bytes": _measure_memory(json.loads(sys.argv[1]))}))
