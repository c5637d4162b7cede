"""What runs in a process of its own: `python -m tests.bench.jobs JOB SPEC RESULT`. One public function per job.

Every job takes a JSON-able spec and returns a JSON-able dict. Library imports stand inside, before the clock starts.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench import peers, stock, tokens_untimed

Result = dict[str, Any]


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far, bytes."""
    from compressor.machine.memory import peak_memory

    return peak_memory()


def family_peak_bytes() -> int:
    """Return the highest resident memory of this process or one that it started and waited for, bytes.

    A started process counts at least this one's peak, which it inherits on Linux: the greater of both is right.
    """
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(peak_bytes(), started * (1 if sys.platform == "darwin" else 1024))


class Stages:
    """A progress that notes clocks and memory at the beginning of every stage."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float, float, int]] = []

    def expect(self, stages: int) -> None:
        """Ignore the number."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Note a stage."""
        self.marks.append((name, time.perf_counter(), time.process_time(), peak_bytes()))

    def advance(self, note: str = "") -> None:
        """Ignore the step."""

    def info(self, message: str) -> None:
        """Ignore the message."""

    def spans(self) -> list[Result]:
        """Return name, wall and CPU seconds of every stage, and the highest memory until its end."""
        return [
            {"name": a[0], "wall_seconds": b[1] - a[1], "cpu_seconds": b[2] - a[2], "peak_bytes": b[3]}
            for a, b in pairwise(self.marks)
        ]


def pipeline(spec: Result) -> Result:
    """Carry out a recipe with `compressor.pipeline.run`: `text` or `file`, `folder`, `model`, `out`, `overrides`."""
    from compressor.passes import methods
    from compressor.pipeline import run
    from compressor.recipe import load_recipe, parse_recipe

    options = {name: method.Options for name, method in methods().items()}
    overrides = spec.get("overrides", ())
    if "file" in spec:
        recipe = load_recipe(Path(spec["file"]), options=options, overrides=overrides)
    else:
        folder = Path(spec["folder"]) if spec.get("folder") else None
        recipe = parse_recipe(spec["text"], source="benchmark", options=options, overrides=overrides, folder=folder)
    import compressor.exporters.onnx  # noqa: F401

    interpreter = _resident_bytes()
    stages = Stages()
    report = run(recipe, model=spec.get("model"), out=Path(spec["out"]), progress=stages)
    stages.stage("end")
    config = json.loads((Path(report["artifact"]) / "config.json").read_text(encoding="utf-8"))
    kept = ("verdict", "model", "dense", "compressed", "ratios", "seconds", "peak_memory_bytes", "artifact")
    return {
        **{key: report[key] for key in kept},
        "failed": [f"{c['name']}: {c.get('reason') or c['value']}" for c in report["checks"] if not c["passed"]],
        "passes": [{k: p[k] for k in ("name", "seconds", "quality_after")} for p in report["passes"]],
        "stock_config": "compression" not in config,
        "compression": _compression(report, stages.spans()),
        "interpreter_bytes": interpreter,
    }


def _compression(report: Result, spans: list[Result]) -> Result:
    """Return seconds and memory of calibration and passes, without the evaluation that follows each pass.

    The report gives wall seconds of the pass alone; the CPU share is that of the stage in which the pass ran.
    """
    names = {entry["name"] for entry in report["passes"]}
    passes = [span for span in spans if span["name"] in names]
    calibrate = [span for span in spans if span["name"] == "calibrate"]
    wall = cpu = 0.0
    for entry, span in zip(report["passes"], passes, strict=True):
        wall += entry["seconds"]
        cpu += entry["seconds"] * min(1.0, span["cpu_seconds"] / span["wall_seconds"])
    wall += sum(span["wall_seconds"] for span in calibrate)
    cpu += sum(span["cpu_seconds"] for span in calibrate)
    peaks = [span["peak_bytes"] for span in passes + calibrate]
    return {"wall_seconds": wall, "cpu_seconds": cpu, "peak_bytes": max(peaks, default=None)}


def shrink(spec: Result) -> Result:
    """Apply one pass to `model` and export the result: `method`, `options`, `samples`, `length`, `data`, `work`.

    `cache` is the budget of activations in bytes; what exceeds it goes to disk.
    """
    import torch

    from compressor.data.reading import DataRequest, load_data, model_batches
    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model
    from compressor.passes import methods
    from compressor.passes.apply import Setting, apply_pass

    torch.set_num_threads(1)
    work = Path(spec["work"])
    source = open_model(spec["model"])
    method = methods()[spec["method"]]
    request = DataRequest(spec["data"], (), spec["samples"], spec["length"], 0, "calibration")
    batches = model_batches(load_data(request, source.task, source.path))
    interpreter = _resident_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    made = method(method.Options(**spec["options"]))
    result, _ = apply_pass(made, source, batches, Setting(work / "pass", "benchmark", spec["cache"]))
    passed = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "peak": peak_bytes()}
    out = work / "artifact"
    out.mkdir(exist_ok=True)
    start = time.perf_counter()
    export_onnx(result, out)
    exported = {"seconds": time.perf_counter() - start, "peak": peak_bytes()}
    return {
        "interpreter_bytes": interpreter,
        "pass_peak_bytes": passed["peak"],
        "peak_bytes": exported["peak"],
        "pass_seconds": passed["seconds"],
        "pass_cpu_seconds": passed["cpu_seconds"],
        "export_seconds": exported["seconds"],
        "parameters_ratio": result.parameters / source.parameters,
    }


def synthetic(spec: Result) -> Result:
    """Write a random Llama: `folder`, `geometry`, `seed`."""
    from tests.bench.synthetic import Geometry, write_llama

    given = dict(spec["geometry"])
    if isinstance(given["ffn"], list):
        given["ffn"] = tuple(given["ffn"])
    shape = Geometry(**given)
    write_llama(Path(spec["folder"]), shape, spec.get("seed", 0))
    return {"parameters": shape.parameters, "block_bytes": 4 * shape.block_parameters}


def flops(spec: Result) -> Result:
    """Count the FLOPs of one forward pass of each of `models` over each of `lengths` tokens."""
    from compressor.model.cost import count_flops
    from compressor.model.folder import open_model

    opened = {name: open_model(folder) for name, folder in spec["models"].items()}
    return {"flops": {name: {n: count_flops(model, n) for n in spec["lengths"]} for name, model in opened.items()}}


def export_ours(spec: Result) -> Result:
    """Export `model` to the folder `out` with our exporter; with `rtn`, after that pass in `work`."""
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.model.folder import open_model
    from compressor.passes import methods
    from compressor.passes.apply import Setting, apply_pass

    out = _fresh(spec["out"])
    source = open_model(spec["model"])
    if "rtn" in spec:
        method = methods()["rtn"]
        made = method(method.Options(**spec["rtn"]))
        source, _ = apply_pass(made, source, [], Setting(_fresh(spec["work"]), "benchmark", 0))
    return _measured(lambda: export_onnx(source, out, OnnxOptions(graph=spec.get("graph", "auto"))), out)


def export_torch(spec: Result) -> Result:
    """Export `model` with plain `torch.onnx.export(dynamo=True)` at `opset`; loading counts, as it does in ours."""
    import onnx_ir  # noqa: F401
    import onnxscript  # noqa: F401
    import torch
    import transformers

    out = _fresh(spec["out"])
    source = Path(spec["model"])
    task = spec["task"]
    cls = transformers.AutoModelForCausalLM if task == "text-generation" else transformers.AutoModel
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if task == "feature-extraction" else [])

    def export() -> None:
        model = cls.from_pretrained(source, dtype=torch.float32).eval()
        model.config.use_cache = False
        batch, length = torch.export.Dim("batch"), torch.export.Dim("sequence")
        inputs = {name: torch.ones(2, 16, dtype=torch.long) for name in names}
        output = "logits" if task == "text-generation" else "last_hidden_state"
        torch.onnx.export(
            model,
            (),
            str(out / "model.onnx"),
            kwargs=inputs,
            dynamo=True,
            opset_version=spec["opset"],
            input_names=names,
            output_names=[output],
            dynamic_shapes={name: {0: batch, 1: length} for name in names},
            external_data=True,
            verbose=False,
        )

    return _measured(export, out, source)


def export_builder(spec: Result) -> Result:
    """Build `model` with onnxruntime-genai's model builder in fp32 for the CPU."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    out, model = _fresh(spec["out"]), str(spec["model"])
    # create_model reads the name of a hub model, the folder of a local one, target, precision, provider, cache.
    given = (model, model, str(out), "fp32", "cpu", str(out / "cache"))
    result = _measured(lambda: create_model(*given, **parse_extra_options(*given, [])), out, Path(model))
    state_head_size(out)
    return result


def state_head_size(folder: Path) -> None:
    """Replace the name that the builder gives the last axis of the cache by its size, which our runner feeds from."""
    import onnx

    size = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]["head_size"]
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for value in graph.graph.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.shape.dim[3].dim_value = size
    onnx.save(graph, folder / "model.onnx")


def command(spec: Result) -> Result:
    """Run a command `argv` that writes the folder `out`; seconds and memory include its imports.

    Its peak begins at this process's, which is small: it imports no library.
    """
    out = _fresh(spec["out"])
    start = time.perf_counter()
    child = subprocess.Popen(spec["argv"], stdout=sys.stderr, env=_without_our_path())
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{Path(spec['argv'][0]).name} ended with exit code {child.returncode}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "file_bytes": _file_bytes(out),
    }


def timing(spec: Result) -> Result:
    """Time two folders side by side: `ours`, `other`, `lengths`, `batches`, `seconds`, `rounds`."""
    from compressor.measure.benchmark import compare

    found = []
    for length in spec.get("lengths") or [None]:
        made = compare(
            Path(spec["ours"]),
            Path(spec["other"]),
            threads=1,
            batch=spec.get("batches", [1]),
            length=length,
            rounds=spec.get("rounds", 21),
            seconds=spec.get("seconds", 6.0),
            memory=False,
        )
        found += made.to_json()["phases"]
    return {"phases": found, "bytes": {side: _file_bytes(Path(spec[side])) for side in ("ours", "other")}}


def generation(spec: Result) -> Result:
    """Decode with onnxruntime-genai: `ours` and `other` in turn, `prompt` and `tokens` long, in `rounds`.

    Half of the rounds are with models opened afresh in the other order, as in `compressor.measure.benchmark`.
    """
    import numpy as np
    import onnxruntime_genai as og

    prompt = np.arange(2, 2 + spec["prompt"], dtype=np.int64) % spec["vocabulary"]
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    first: dict[str, list[float]] = {"ours": [], "other": []}
    tokens: dict[str, list[int]] = {}
    for sides in (("ours", "other"), ("other", "ours")):
        models = {side: _genai_model(og, spec[side]) for side in sides}
        for number in range(spec["rounds"] // 2 + 1):
            for side in sides if number % 2 else sides[::-1]:
                begun, spent, tokens[side] = _generate(og, models[side], prompt, spec["tokens"])
                if number:  # the first round warms up
                    first[side].append(begun)
                    seconds[side].append(spent / spec["tokens"])
        del models
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["other"], strict=True)]
    waits = [a / b for a, b in zip(first["ours"], first["other"], strict=True)]
    return {
        "tokens_per_second": {side: 1 / float(np.median(values)) for side, values in seconds.items()},
        "speedup": float(np.median(ratios)),
        "first_token_ratio": float(np.median(waits)),
        "same_tokens": tokens["ours"] == tokens["other"],
    }


def _genai_model(og: Any, folder: str) -> Any:
    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    return og.Model(config)


def _generate(og: Any, model: Any, prompt: Any, count: int) -> tuple[float, float, list[int]]:
    """Return the CPU seconds until the first token and of `count` steps after it, and the tokens."""
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + count + 1, min_length=len(prompt) + count + 1)
    generator = og.Generator(model, params)
    begin = time.process_time()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    start = time.process_time()
    for _ in range(count):
        generator.generate_next_token()
    end = time.process_time()
    return start - begin, end - start, [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def _measured(export: Callable[[], Any], out: Path, config_of: Path | None = None) -> Result:
    """Run an export; return its seconds, and the memory above that of the imported libraries."""
    base = _resident_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    export()
    result = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    peak = peak_bytes()
    if config_of is not None:
        (out / "config.json").write_bytes((config_of / "config.json").read_bytes())
    return {**result, "peak_bytes": peak, "added_bytes": max(0, peak - base), "file_bytes": _file_bytes(out)}


def _fresh(folder: str) -> Path:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    Path(folder).mkdir(parents=True)
    return Path(folder)


def _file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.onnx*"))


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or ["no message"])[0]
    return re.sub(r"\x1b?\[[0-9;]*m", "", line)


def _without_our_path() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


JOBS: dict[str, Callable[[Result], Result]] = {
    job.__name__: job
    for job in (
        pipeline,
        shrink,
        stock.forward,
        tokens_untimed.reduced_quality,
        synthetic,
        flops,
        export_ours,
        export_torch,
        export_builder,
        command,
        timing,
        generation,
        peers.ort_nbits,
        peers.ort_dynamic,
        peers.genai_int4,
        peers.llmcompressor_gptq,
        peers.measured_quality,
    )
}


def main() -> int:
    """Run the job that the command line names; the last line of a failure says what it was.

    The file RESULT holds `row`, what the job returned (None if it failed), and `peak_bytes`.
    """
    name, text, target = sys.argv[1:]
    row: Result | None = None
    try:
        row = JOBS[name](json.loads(text))
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"\n{type(error).__name__}: {_first_line(error)}\n")
    finally:
        Path(target).write_text(json.dumps({"row": row, "peak_bytes": family_peak_bytes()}), encoding="utf-8")
    return int(row is None)


if __name__ == "__main__":
    sys.exit(main())
