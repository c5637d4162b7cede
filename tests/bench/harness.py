"""What every benchmark uses: processes of their own for all measured work, results kept step by step, the environment.

A child reads its own memory: on Linux what its parent is told of a child may be the parent's own, inherited over exec.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DATA_VARIABLE = "COMPRESSOR_TEST_DATA"
LIBRARIES = (
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-genai",
    "numpy",
)
_JOB_SECONDS = 7200

Row = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """How a benchmark runs.

    Attributes:
        quick: small samples: shows that everything works, no figures to quote.
        data: folder of the real models and data, None where there is none.
        scratch: where models, artifacts and finished steps lie.
        lanes: jobs whose time does not count run beside each other.
        resume: take over the steps that an earlier, unfinished run left in `scratch`.
        say: receives one line per step.
        timed: quality artifacts are timed again, one at a time; else the speed-ups are those of each run's own report.
        windows: evaluation windows of llama-wt2; None for all.
        only: regular expression that the rows of quality (`model: pass`) and memory (`method-blocks`) must match; None
            for all.
    """

    quick: bool
    data: Path | None
    scratch: Path
    lanes: int = 1
    resume: bool = False
    say: Callable[[str], None] = field(default=lambda line: None)
    timed: bool = True
    windows: int | None = None
    only: str | None = None

    def folder(self, *names: str) -> Path:
        """Return an existing folder below the scratch folder."""
        path = self.scratch.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def step(self, suite: str, name: str, job: str, spec: Mapping[str, Any]) -> Row:
        """Run one job, or take over its result; a failure becomes a row with `error`."""
        folder = self.folder(suite)
        file = folder / f"{name}.json"
        key = hashlib.sha256(json.dumps([job, spec], sort_keys=True).encode()).hexdigest()
        if self.resume and file.is_file():
            kept: Row = json.loads(file.read_text(encoding="utf-8"))
            if kept.get("key") == key and "error" not in kept["row"]:
                self.say(f"{suite}/{name}: kept")
                return dict(kept["row"])
        self.say(f"{suite}/{name}")
        row = run_job(job, spec, folder / f"{name}.log")
        self.say(f"{suite}/{name}: {row.get('error') or 'done'} ({row['process']['wall_seconds']:.0f} s)")
        file.write_text(json.dumps({"key": key, "row": row}), encoding="utf-8")
        return row

    def steps(self, suite: str, job: str, specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
        """Run jobs in `lanes` beside each other; only for jobs that count CPU seconds and memory."""
        with ThreadPoolExecutor(self.lanes) as pool:
            futures = {name: pool.submit(self.step, suite, name, job, spec) for name, spec in specs.items()}
            return {name: future.result() for name, future in futures.items()}


def joined(made: Row, earlier: Row | None) -> Row:
    """Return a result with the rows of an earlier one that it left out (`--only`), in the order of the plan.

    Rows with other data settings, of a trial, or that are planned no more, are not taken over. What is taken over keeps
    the environment that it was measured in. So do figures beside the rows that are None for want of their row.
    """
    settings = {item["name"]: item for item in made["settings"]}
    rows = {(row["model"], row["pass"]): row for row in made["rows"]}
    if earlier is not None and made["quick"] == earlier["quick"]:
        made = {key: earlier.get(key) if value is None else value for key, value in made.items()}
        before = {item["name"]: item for item in earlier["settings"]}
        for row in earlier["rows"]:
            if settings.get(row["model"]) == before.get(row["model"]):
                key = row["model"], row["pass"]
                rows.setdefault(key, {"environment": earlier["environment"], **row})
    planned = [(model, line) for model, line in made["planned"]]
    kept = [rows[key] for key in planned if key in rows]
    return {
        **{key: value for key, value in made.items() if key != "planned"},
        "settings": [item for name, item in settings.items() if name in {row["model"] for row in kept}],
        "rows": kept,
        "skipped": [*made["skipped"], *_left_out(planned, rows)],
    }


def _left_out(planned: list[tuple[str, str]], rows: dict[tuple[str, str], Row]) -> list[Row]:
    counts = Counter(model for model, _ in planned)
    left = Counter(model for model, line in planned if (model, line) not in rows)
    reason = "left out when this was measured (`--only`)"
    return [{"what": f"{n} of {counts[model]} runs on {model}", "reason": reason} for model, n in left.items()]


def run_job(job: str, spec: Mapping[str, Any], log: Path) -> Row:
    """Run a function of `tests.bench.jobs` in a process of its own.

    Returns:
        What the function returned, with `process`: wall and CPU seconds and the highest resident memory of the process
        and those that it started (None where it was killed); or `error`, the last line that the process wrote.
    """
    result = log.with_suffix(".result")
    result.unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.bench.jobs", job, json.dumps(spec), str(result)]
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        child = subprocess.Popen(command, cwd=REPOSITORY, env=_child_environment(), stdout=stream, stderr=stream)
        status, usage = _wait(child)
    process: Row = {
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    found: Row = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {"row": None}
    result.unlink(missing_ok=True)
    process["peak_bytes"] = found.get("peak_bytes")
    if status != 0 or found["row"] is None:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return {"error": without_paths(lines[-1] if lines else f"exit status {status}"), "process": process}
    return {**found["row"], "process": process}


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, Any]:
    """Wait for a child that may take `_JOB_SECONDS`; unlike Popen.wait this tells what it used."""
    timer = threading.Timer(_JOB_SECONDS, child.kill)
    timer.start()
    try:
        _, status, usage = os.wait4(child.pid, 0)
    finally:
        timer.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage


def _child_environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **fixed, "PYTHONPATH": path}


def without_paths(text: str) -> str:
    """Return a message without the places of this machine."""

    def plain(word: str) -> str:
        bare = word.strip("'\"(),:")
        return word.replace(bare, Path(bare).name) if bare.startswith("/") else word

    return " ".join(plain(word) for word in text.split())[:300]


def find_data() -> Path | None:
    """Return the folder of real models and data, or None."""
    folder = Path(os.environ.get(DATA_VARIABLE) or REPOSITORY.parent / "shared" / "data")
    return folder.resolve() if (folder / "README.md").is_file() else None


def environment() -> dict[str, Any]:
    """Return processor, threads, load and versions: what figures depend on; nothing that names the machine."""
    from compressor.machine.doctor import cpu

    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = cpu()
    features = [name for name, present in (processor["features"] or {}).items() if present]
    return {
        "processor": processor["model"],
        "cores": processor["cores"],
        "features": features,
        "threads": 1,
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that the file is there whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    part.replace(file)


def drop(folder: Path) -> None:
    """Remove a folder of scratch."""
    shutil.rmtree(folder, ignore_errors=True)
