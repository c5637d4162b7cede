"""Runs passes and those of a recipe on the stand-in device and on the CPU; prints what differs, as JSON.

    python -m tests.pipeline.on_accelerator FOLDER CORPUS

A process of its own, because the device cannot be taken back. FOLDER is for models and results, CORPUS holds the text.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.data.kinds import Batches
from compressor.machine.progress import NullProgress
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.pipeline.inputs import input_hashes
from compressor.pipeline.prepare import prepare
from compressor.pipeline.record import Clock
from compressor.walk import Walk
from compressor.walk.checkpoint import STATE
from tests import accelerator
from tests.core.toy import toy_batches
from tests.pico import make_pico
from tests.pipeline.conftest import make_recipe

DEVICES = ("cpu", accelerator.NAME)
PLENTY = 1 << 30
SMALL = {"num_hidden_layers": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL),
    "untied": ("llama", {**SMALL, "tie_word_embeddings": False}),
    "opt": ("opt", SMALL),
    "bfloat16": ("llama", {**SMALL, "dtype": "bfloat16"}),
    "untied opt": ("opt", {**SMALL, "tie_word_embeddings": False}),
    "bert": ("bert", SMALL),
    "vit": ("vit", SMALL),
}
THIRD: dict[str, Any] = {"sparsity": 0.3}
SLICED: dict[str, Any] = {"reduction": 0.2, "basis_steps": 3}
SOLVED: dict[str, Any] = {"refine": 1}
MIXED: dict[str, Any] = {"bits": "auto", "budget": 0.3}

# method, model, options: those that take other paths through the code. Other methods run with their defaults.
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("width", "llama", THIRD),
    ("width", "bert", THIRD),
    ("width", "opt", THIRD),
    ("width", "vit", THIRD),
    ("width", "bert", {**THIRD, "importance": "random", "weighting": "residual", "refit": False}),
    ("width", "bfloat16", {**THIRD, "importance": "act", "weighting": "residual", "reconstruct": False}),
    ("cfsp", "llama", THIRD),
    ("flap", "opt", THIRD),
    ("magnitude", "llama", THIRD),
    ("slicegpt", "llama", SLICED),
    ("slicegpt", "untied", {**SLICED, "split": "hidden"}),
    ("slicegpt", "vit", SLICED),
    ("slicegpt", "opt", {**SLICED, "rotation": "per_layer"}),
    ("slicegpt", "llama", {**SLICED, "rotation": "per_layer", "refit": False}),
    ("rtn", "llama", {"embedding": 4, "head": 4}),
    ("rtn", "bert", MIXED),
    ("hqq", "llama", {"iterations": 3}),
    ("awq", "llama", {"steps": 4}),
    ("awq", "opt", {"steps": 4}),
    ("gptq", "llama", {**SOLVED, **MIXED}),
    ("gptq", "bert", {**SOLVED, "clip": "mse"}),
    ("rsq", "untied", SOLVED),
    ("rsq", "untied opt", {**SOLVED, "symmetric": True, "act_order": False}),
    ("rsq", "bert", {"refine": 0, "correct": False}),
    ("int8-dynamic", "bert", {"sensitive": 0.3}),
    ("int8-static", "llama", {"sensitive": 0.3}),
    ("int8-static", "opt", {"smooth": 0.5, "method": "entropy"}),
    ("int8-static", "vit", {"method": "percentile"}),
    ("tome", "vit", {"r": 3}),
    ("zero-tprune", "vit", {"keep": 0.6}),
    ("token-transforming", "vit", {"keep": 0.6}),
    ("chess", "llama", {"sparsity": 0.3}),
    ("teal", "llama", {"sparsity": 0.25}),
    ("topk", "opt", {"sparsity": 0.5}),
    ("fp16", "llama", {}),
    ("bf16", "bert", {}),
]
# The other methods of these families are presets of the same mechanisms, and have no defaults for how much goes.
PRESETS = ("tokens", "activation")
LISTED = {name for name, _, _ in VARIANTS} | {name for name, method in methods().items() if method.family in PRESETS}
PASSES = [*VARIANTS, *((name, "llama", {}) for name in sorted(methods()) if name not in LISTED)]
STOPPED: list[tuple[str, str, dict[str, Any]]] = [
    ("width", "llama", THIRD),
    ("slicegpt", "opt", {**SLICED, "rotation": "per_layer"}),
]


def job_name(method: str, model: str, options: dict[str, Any]) -> str:
    return " ".join([method, model, *(f"{key}={value}" for key, value in options.items())])


def names() -> list[str]:
    """Return the names of all jobs."""
    passes = [job_name(*case) for case in PASSES]
    return [*passes, *(f"stopped {job_name(*case)}" for case in STOPPED), "no data", "evaluation", "recipe"]


def main(folder: Path, corpus: Path) -> dict[str, str]:
    """Run everything; return what went wrong, by job: nothing where it is empty."""
    accelerator.install()
    accelerator.plain_attention()
    sources = {name: make_pico(family, folder / name, **extra) for name, (family, extra) in MODELS.items()}
    jobs: dict[str, Callable[[str, Path], dict[str, Any]]] = {}
    for case in PASSES:
        jobs[job_name(*case)] = lambda device, work, case=case: compress(sources, case, device, work)
    for case in STOPPED:
        jobs[f"stopped {job_name(*case)}"] = lambda device, work, case=case: stopped(sources, case, device, work)
    jobs["no data"] = lambda device, work: compress(sources, ("int8-dynamic", "opt", {}), device, work, data=False)
    jobs["evaluation"] = lambda device, work: outputs(open_model(sources["bert"]), device, work)
    jobs["recipe"] = lambda device, work: recipe(sources["llama"], corpus, device, work)
    return {name: compare(job, folder / f"job-{i}") for i, (name, job) in enumerate(jobs.items())}


def compare(job: Callable[[str, Path], dict[str, Any]], folder: Path) -> str:
    """Return how what a job gives on the device differs from what it gives on the CPU."""
    accelerator.used.clear()
    try:
        here, there = (job(device, folder / device) for device in DEVICES)
    except Exception:
        return traceback.format_exc()
    if not accelerator.used:
        return "nothing was computed on the device"
    return ", ".join(f"{name} differs" for name in sorted({*here, *there}) if here.get(name) != there.get(name))


def files(folder: Path) -> dict[str, Any]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def compress(
    sources: dict[str, Path],
    case: tuple[str, str, dict[str, Any]],
    device: str,
    work: Path,
    *,
    data: bool = True,
    **setting: Any,
) -> dict[str, Any]:
    """Return the files that a pass writes, and the changes it tells of."""
    name, model, options = case
    method, source = methods()[name], open_model(sources[model])
    made = Setting(work=work, fingerprint="device", cache_bytes=PLENTY, device=device, **setting)
    batches = toy_batches(source.task) if data else Batches(tuple, 0)
    _, changes = apply_pass(method(method.Options(**options)), source, batches, made)
    return {**files(work), "changes": [asdict(change) for change in changes]}


def stopped(sources: dict[str, Path], case: tuple[str, str, dict[str, Any]], device: str, work: Path) -> dict[str, Any]:
    """Stop a pass after its first block; return what it gives when it goes on."""

    def stop(note: str) -> None:
        if note.startswith("block 1 "):
            raise KeyboardInterrupt

    try:
        compress(sources, case, device, work, advance=stop)
    except KeyboardInterrupt:
        return compress(sources, case, device, work)
    raise AssertionError("the pass was not stopped")


def outputs(model: ModelFolder, device: str, work: Path) -> dict[str, Any]:
    walk = Walk(model, toy_batches(model.task), work=work, cache_bytes=0, device=device)
    return {f"batch {k}": np.asarray(out).tobytes() for k, out in enumerate(walk.outputs())}


def recipe(model: Path, corpus: Path, device: str, work: Path) -> dict[str, Any]:
    """Run the passes of a recipe, measured after each; return the last model and what the report says of them."""
    passes = [{"width": THIRD}, {"gptq": SOLVED}]
    prepared = prepare(make_recipe.__wrapped__(corpus)(passes=passes), str(model))  # type: ignore[attr-defined]
    module: Any = sys.modules["compressor.pipeline.run"]
    with computing_on(device):
        compressed, entries = module._run_passes(
            prepared, input_hashes(prepared), prepared.load_evaluation(), work, NullProgress(), Clock()
        )
    made = {name: data for name, data in files(compressed.path).items() if name != STATE}  # which names the device
    return {**made, "passes": [{**entry, "seconds": 0} for entry in entries]}


@contextmanager
def computing_on(device: str) -> Iterator[None]:
    """While entered, recipes are run on `device`."""
    module: Any = sys.modules["compressor.pipeline.run"]
    before, module.compute_device = module.compute_device, lambda: device
    try:
        yield
    finally:
        module.compute_device = before


def refusals() -> dict[str, Callable[[], Any]]:
    """Return operations that CUDA refuses, by name."""
    own = torch.ones(3, 3, device=accelerator.NAME)
    other, index = torch.ones(3, 3), torch.tensor([0, 1])
    return {
        "sum": lambda: own + other,
        "sum, CPU first": lambda: other + own,
        "product": lambda: own @ other,
        "list": lambda: torch.cat([own, other]),
        "in place": lambda: own.mul_(other),
        "in place, on the CPU": lambda: other.mul_(own),
        "in place, on a number of the CPU": lambda: torch.tensor(1.0).add_(own[0, 0]),
        "gradient": lambda: (own.clone().requires_grad_() @ other).sum().backward(),
        "out": lambda: torch.mm(own, own, out=other),
        "mask": lambda: own.masked_fill(other > 0, 0.0),
        "condition": lambda: torch.where(other > 0, own, own),
        "rows by a CPU index": lambda: own.index_select(0, index),
        "embedding of CPU tokens": lambda: torch.nn.functional.embedding(index, own),
        "sum into rows by a CPU index": lambda: own.index_add_(0, index, own[:2]),
        "values from the CPU": lambda: own.index_put_((index,), other[:2]),
        "index of the device, on the CPU": lambda: other[index.to(accelerator.NAME)],
        "mask of the device, on the CPU": lambda: other[own > 0],
        "number of the CPU in a product": lambda: torch.addmv(torch.tensor(1.0), own, own[0]),
        "generator of the CPU": lambda: torch.randn(3, device=accelerator.NAME, generator=torch.Generator()),
        "generator of the CPU, in place": lambda: own.uniform_(generator=torch.Generator()),
        "numpy": own.numpy,
        "numpy.asarray": lambda: np.asarray(own),
    }


def allowed() -> dict[str, tuple[Any, Any]]:
    """Return what the device and the CPU give where tensors of both may meet, by name."""
    own, other = torch.arange(9.0).reshape(3, 3).to(accelerator.NAME), torch.arange(9.0).reshape(3, 3)
    index, into = torch.tensor([2, 0]), own.clone()
    into.T[1:].copy_(-other[1:])  # through a view, to the device
    aliased, gradient = own.clone(), own.clone().requires_grad_()
    aliased[1].data.view(3).mul_(2)
    (gradient @ gradient).square().sum().backward()
    expected = other.clone().requires_grad_()
    (expected @ expected).square().sum().backward()
    doubled, changed = other.clone(), other.clone()
    changed.T[1:] = -other[1:]
    doubled[1] *= 2
    return {
        "number of the CPU": (own * torch.tensor(2.0), other * 2),
        "CPU index": (own[index], other[index]),
        "CPU mask": (own[other > 4], other[other > 4]),
        "number put by a CPU index": (own.clone().index_put_((index,), torch.tensor(5.0))[2], torch.full((3,), 5.0)),
        "copy to the CPU": (torch.empty(3, 3).copy_(own), other),
        "copy into a view": (into, changed),
        "writes through data and views": (aliased, doubled),
        "gradient": (gradient.grad, expected.grad),
        "list": (torch.tensor(own.tolist()), other),
    }


def report(folder: Path, corpus: Path) -> dict[str, Any]:
    """Return the problems of all jobs, what each refusal said, and whether allowed operations gave the right values."""
    found: dict[str, Any] = {"jobs": main(folder, corpus), "refusals": {}}
    for name, operation in refusals().items():
        try:
            operation()
        except (RuntimeError, TypeError) as error:
            found["refusals"][name] = str(error)
        else:
            found["refusals"][name] = ""
    found["allowed"] = {name: torch.equal(ours.cpu(), theirs) for name, (ours, theirs) in allowed().items()}
    return found


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1]), Path(sys.argv[2]))))
