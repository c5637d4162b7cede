"""What this machine offers and what is missing: versions, processor, runtimes, memory, disk."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.machine.processor import cpu, has_byte_products

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import Console

PACKAGE = "compressor"
EXTRAS = {
    "compressed": ("compressed-tensors", "compressed_tensors", "lets stock transformers read quantized safetensors"),
    "genai": ("onnxruntime-genai", "onnxruntime_genai", "runs exported decoders in onnxruntime-genai"),
    "sign": ("model-signing", "model_signing", "signs artifacts and checks signatures"),
    "test": ("pytest", "pytest", "runs the tests"),
    "dev": ("ruff", "ruff", "checks changes to the program"),
}
"""Extra of the package -> the distribution that shows whether it is there, its module, and what for."""

_LOW_BYTES = 2_000_000_000


def examine() -> dict[str, Any]:
    """Return everything as JSON values; `problems` keep the program from working, `advice` would help."""
    packages = required_packages()
    runtime, runtime_problems = _runtime()
    problems = [f"{item['name']}: {item['problem']}" for item in packages if item["problem"]] + runtime_problems
    extras = _extras()
    memory, disk = _memory(), _disk()
    processor = cpu()
    return {
        "version": importlib.import_module(PACKAGE).__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "extras": extras,
        "cpu": processor,
        "runtime": runtime,
        "memory": memory,
        "disk": disk,
        "problems": problems,
        "advice": _advice(extras, memory, disk, processor),
    }


def required_packages() -> list[dict[str, Any]]:
    """Return `name`, `version`, `required` and `problem` (None when all is well) of every package that is needed here.

    Without the package `packaging`, which reads requirements, that is all that can be said.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        problem = "missing; get it with: pip install packaging"
        return [{"name": "packaging", "version": None, "required": "", "problem": problem}]
    needed = [Requirement(text) for text in _requirements()]
    # Those of an extra hold only where the extra is asked for.
    return [_package(item) for item in needed if item.marker is None or item.marker.evaluate({"extra": ""})]


def _requirements() -> list[str]:
    """Return the requirements of the installed package, or what a checkout that is not installed is known to import."""
    try:
        return importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [
            "torch",
            "transformers",
            "onnx",
            "onnxruntime",
            "numpy",
            "pydantic",
            "pyyaml",
            "rich",
            "typer",
            "psutil",
        ]


def _package(needed: Requirement) -> dict[str, Any]:
    bounds, version = str(needed.specifier), _version(needed.name)
    advice = f"get it with: pip install '{needed.name}{bounds}'"
    problem = None
    if version is None:
        problem = f"missing; {advice}"
    elif not needed.specifier.contains(version, prereleases=True):
        problem = f"{version} is not {bounds}; {advice}"
    return {"name": needed.name, "version": version, "required": bounds, "problem": problem}


def _extras() -> list[dict[str, Any]]:
    found = []
    for extra, (distribution, module, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        found.append(
            {
                "name": extra,
                "version": _version(distribution) if there else None,
                "purpose": purpose,
                "install": None if there else f"pip install 'compressor[{extra}]'",
            }
        )
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _runtime() -> tuple[dict[str, Any], list[str]]:
    """Return what the runtimes themselves say, and which of them do not even start."""
    problems: list[str] = []

    def ask(name: str, question: Callable[[Any], Any]) -> Any:
        try:
            return question(importlib.import_module(name))
        except ImportError as error:
            problems.append(f"{name} cannot be imported: {error}")
        except Exception as error:  # a broken driver raises whatever it likes
            problems.append(f"{name}: {type(error).__name__}: {error}")
        return None

    providers = ask("onnxruntime", lambda ort: list(ort.get_available_providers()))
    gpus = ask("torch", lambda torch: [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])
    threads = ask("torch", lambda torch: torch.get_num_threads()) if gpus is not None else None
    return {"onnxruntime_providers": providers, "cuda": gpus, "torch_threads": threads}, problems


def _memory() -> dict[str, int | None]:
    try:
        import psutil
    except ImportError:
        return {"total_bytes": None, "available_bytes": None}
    memory = psutil.virtual_memory()
    return {"total_bytes": int(memory.total), "available_bytes": int(memory.available)}


def _disk() -> dict[str, Any]:
    """Return the free bytes of the working folder and of the folder for downloaded models."""
    cache = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return {"working_folder": _free(Path.cwd()), "model_cache": _free(Path(cache))}


def _free(folder: Path) -> dict[str, Any]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return {"path": str(folder), "free_bytes": shutil.disk_usage(there).free}


def _advice(
    extras: Iterable[dict[str, Any]], memory: dict[str, int | None], disk: dict[str, Any], processor: dict[str, Any]
) -> list[str]:
    advice = [f"{item['install']}   # {item['purpose']}" for item in extras if item["install"]]
    available = memory["available_bytes"]
    if available is not None and available < _LOW_BYTES:
        advice.append("little memory is free: lower calibration.samples or calibration.cache_memory")
    for place in disk.values():
        if place["free_bytes"] < _LOW_BYTES:
            advice.append(f"little room is left on the disk of {place['path']}")
    if processor["features"] and not has_byte_products(processor["features"]):
        advice.append("this processor has no 8-bit dot products: quantized models become smaller here, not much faster")
    return advice


def render(facts: dict[str, Any], console: Console) -> None:
    """Print what `examine` found."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(facts):
        table.add_row(Text(name), Text(value))
    console.print(table)
    for title, style, lines in (("Missing", "bold red", facts["problems"]), ("Advice", "bold", facts["advice"])):
        if lines:
            console.print(Text(f"\n{title}", style=style))
            for line in lines:
                console.print(Text(f"  {line}"), soft_wrap=True)
    if not facts["problems"]:
        console.print(Text("\nEverything that is needed is there.", style="green"))


def _rows(facts: dict[str, Any]) -> Iterable[tuple[str, str]]:
    from compressor.machine.progress import size

    def bytes_text(count: int | None) -> str:
        return "unknown" if count is None else size(count)

    yield "compressor", facts["version"]
    yield "python", f"{facts['python']} on {facts['system']}"
    for item in [*facts["packages"], *facts["extras"]]:
        label = f"[{item['name']}]" if "purpose" in item else item["name"]
        yield label, item["version"] or "missing"
    processor, runtime = facts["cpu"], facts["runtime"]
    yield "processor", f"{processor['model']}, {processor['cores']} cores"
    if processor["features"] is None:
        yield "features", "unknown on this system"
    else:
        yield "features", "  ".join(f"{'+' if on else '-'}{name}" for name, on in processor["features"].items())
    yield "ONNX Runtime", ", ".join(runtime["onnxruntime_providers"] or ["not available"])
    yield "CUDA", ", ".join(runtime["cuda"] or ["none"])
    memory = facts["memory"]
    yield "memory", f"{bytes_text(memory['available_bytes'])} free of {bytes_text(memory['total_bytes'])}"
    for name, place in facts["disk"].items():
        yield name.replace("_", " "), f"{bytes_text(place['free_bytes'])} free at {place['path']}"
