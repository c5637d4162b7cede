"""The source gate: what is compressed is the model that stock transformers loads.

An artifact is compared with our own reading of the model, so a wrong reading would verify. Before any pass, stock
transformers therefore loads the folder in a fresh process with the class that config.json names, and there

* every parameter is compared with the tensor that we read for it: equal to the last bit;
* its outputs on seeded probes are compared with those of our skeleton, which is loaded after the stock model is gone:
  within `TOLERANCE` of their own size.

compression.json keeps the result under `source`: the `class` and the release of `transformers` that loaded it, sha256
of `probes` and `outputs`, and per output four `projections` (sums of all its numbers with seeded signs, divided by the
root of their count) with its `scale` (root mean square). Another processor gives outputs of another sha256, so a later
verification compares projections.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor._lazy import lazy
from compressor.architectures.tasks import TASKS
from compressor.errors import CompressorError, ModelError, ResourceError
from compressor.machine.asking import answer, ask
from compressor.machine.fresh import Ended
from compressor.measure.runner import first_line
from compressor.measure.torch_runner import quiet
from compressor.model.blueprint import SECTION
from compressor.model.folder import ModelFolder, open_model
from compressor.model.image_size import ResampledEntry
from compressor.verification.source_probes import Outputs, Probe, outputs_of, probes_for
from compressor.verification.verdict import Check, bounded, yes

torch = lazy("torch")
transformers = lazy("transformers")

DIFFERENCE = "difference"
"""Key of the largest difference found; it is reported, not recorded: its last bits may change between runs."""
TOLERANCE = 1e-5
"""Largest difference between an output of ours and stock's, over the root mean square of stock's."""
ELSEWHERE = 1e-3
"""Largest difference between projections now and those recorded, over the output's scale: another processor may have
made those."""
_SIGNS = 4


def why_skipped(model: ModelFolder) -> str | None:
    """Return why there is nothing to compare a model with, None if there is."""
    if model.blueprint.grids or hasattr(model.config, SECTION):
        return "the model was compressed by this program, and stock transformers does not load it as it is"
    return None


def run_gate(model: ModelFolder, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Compare a model with what stock transformers loads, in a process of its own; return the facts to be recorded.

    Raises:
        ModelError: stock transformers does not load it, or loads another model than we read.
        ResourceError: the process was killed for want of memory.
    """
    request = {
        "path": str(model.path.resolve()),
        "task": model.task,
        "part": model.part,
        "trust_remote_code": trust_remote_code,
    }
    found: dict[str, Any] = ask("compressor.verification.source", request, crashed=crash)
    return found


def crash(done: Ended) -> CompressorError:
    """Return the error for a process of the gate that ended without an answer."""
    if done.code == -9:
        return ResourceError("the process that runs the stock model was killed, most likely for want of memory")
    if done.code < 0:
        return ModelError(f"the process that runs the stock model crashed (signal {-done.code})")
    return CompressorError(f"stock transformers cannot run the model: {done.last_line}")


def compare(model: ModelFolder) -> dict[str, Any]:
    """Compare a model with what stock transformers loads, in this process; return the facts to be recorded.

    Of the two models only one is in memory at a time.

    Raises:
        ModelError: stock transformers does not load it, or loads another model than we read.
    """
    probes = probes_for(model.config, model.family, model.task)
    stock = load_stock(model)
    name, config = type(stock).__name__, stock.config.to_dict()
    _check_tensors(stock, model)
    pooled = model.family.pooled
    wanted = [_run(stock, probe, pooled, "stock transformers") for probe in probes]
    del stock
    gc.collect()
    ours = model.load()
    difference = 0.0
    for probe, outputs in zip(probes, wanted, strict=True):
        reason, found = _difference(outputs, _run(ours, probe, pooled, "this program"))
        if reason:
            keys = _differing_keys(config, model.config.to_dict())
            raise ModelError(
                f"this program reads the model differently from stock transformers' {name}: {reason} (probe"
                f" {probe.name}){keys}",
                hint="The model, or a key of its config.json, is not covered. Please report it.",
            )
        difference = max(difference, found)
    return {**record_of(name, probes, wanted), DIFFERENCE: difference}


def _run(model: Any, probe: Probe, pooled: Sequence[str], whose: str) -> Outputs:
    """Return a model's outputs on a probe; raise ModelError where it fails on it."""
    try:
        return outputs_of(model, probe, pooled)
    except Exception as error:  # what modules raise where config.json makes no sense has no common class
        if lacks_memory(error):
            raise
        raise ModelError(
            f"the model as {whose} loads it cannot be run (probe {probe.name}): {type(error).__name__}:"
            f" {first_line(error)}",
            hint="Take config.json from the same place as the weights.",
        ) from error


def record_of(name: str, probes: list[Probe], wanted: list[Outputs]) -> dict[str, Any]:
    """Return what compression.json keeps of a stock model's outputs."""
    outputs = {f"{p.name}.{key}": array for p, out in zip(probes, wanted, strict=True) for key, array in out.items()}
    return {
        "class": name,
        "transformers": transformers.__version__,
        "probes": _sha256([array for probe in probes for array in probe.inputs.values()]),
        "outputs": _sha256(list(outputs.values())),
        "values": {key: _projections(array) for key, array in outputs.items()},
    }


def source_check(facts: Mapping[str, Any]) -> Check:
    """Return the gate's result as a check."""
    return bounded(
        "source.stock", float(facts[DIFFERENCE]), most=TOLERANCE, why="our reading of the model differs from stock's"
    )


def recorded_check(facts: Mapping[str, Any], recorded: Any) -> Check:
    """Compare the stock model's outputs with those that compression.json records of the model that was compressed."""
    if not isinstance(recorded, dict) or not isinstance(recorded.get("values"), dict):
        return yes("source.recorded", False, "compression.json does not say what the model gave that was compressed")
    if recorded.get("outputs") == facts["outputs"]:
        return bounded("source.recorded", 0.0, most=ELSEWHERE)
    try:
        worst = max(_apart(values, recorded["values"][key]) for key, values in facts["values"].items())
    except (KeyError, TypeError, ValueError):
        worst = None
    why = "the model is not the one that was compressed"
    return bounded("source.recorded", worst, most=ELSEWHERE, why=why)


def load_stock(model: ModelFolder) -> Any:
    """Return the model as stock transformers loads it: in float32, with the class that config.json names for the task.

    Raises:
        ModelError: transformers refuses it, or leaves parameters without a tensor.
    """
    stated = (model.config.architectures or [""])[0] if model.tower is None else ""
    ours = type(model.skeleton()).__name__
    whole = model.tower.whole if model.tower is not None else None
    loader = getattr(transformers, whole or (stated if stated == ours else TASKS[model.task].auto_class))
    absent = tuple(model.family.optional) if TASKS[model.task].output == "hidden" else ()
    stock = loaded(loader, model.path, absent)
    if model.tower is None:
        return stock.eval()
    from compressor.verification.towers import StockTower

    return StockTower(stock, model.tower).eval()


def loaded(loader: Any, folder: Path, absent: Sequence[str] = ()) -> Any:
    """Return what a class of transformers loads from a folder, in float32.

    Args:
        loader: the class.
        folder: of the model.
        absent: modules that a checkpoint may leave out.

    Raises:
        ModelError: transformers refuses it, or leaves parameters without a tensor.
    """
    try:
        with quiet():
            stock, info = loader.from_pretrained(
                str(folder),
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, SafetensorError, ...
        if lacks_memory(error):
            raise
        raise ModelError(f"stock transformers cannot load the model: {first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = [str(name) for name in sorted(info.get(kind) or [])]
        if lacking := [name for name in names if not set(absent) & set(name.split("."))]:
            more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
            raise ModelError(f"stock transformers reports {kind.replace('_', ' ')}: {lacking[0]}{more}")
    return stock


def _check_tensors(stock: Any, model: ModelFolder) -> None:
    """Compare every tensor that we read with the stock parameter of its name, one at a time."""
    held = stock.state_dict()
    for name in model.weights.names():
        entry = model.weights.entry(name)
        tensor = (entry.original if isinstance(entry, ResampledEntry) else entry).value(model.weights.read)
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        if name not in held:
            raise ModelError(f"{name} is read here, but stock transformers' {type(stock).__name__} has no such tensor")
        if not torch.equal(held[name], tensor):
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"tensor {name} holds NaN or infinite values", hint="The checkpoint is damaged.")
            raise ModelError(f"stock transformers loads other values for {name} than this program reads")
    model.weights.close()
    head = stock.get_output_embeddings()
    if head is not None and model.blueprint.tied != (head.weight is stock.get_input_embeddings().weight):
        raise ModelError(
            f"stock transformers {'does not tie' if model.blueprint.tied else 'ties'} the head to the embedding, this"
            " program takes them the other way (config.json: tie_word_embeddings)"
        )


def _difference(wanted: Outputs, found: Outputs) -> tuple[str, float]:
    """Return what is wrong with our outputs, an empty text if nothing is, and the largest relative difference."""
    largest = 0.0
    for key, stock in wanted.items():
        ours = found.get(key)
        if not np.isfinite(stock).all():
            return f"{key} of the stock model is not finite", largest
        if ours is None or ours.shape != stock.shape:
            return f"{key} has shape {None if ours is None else ours.shape}, stock's {stock.shape}", largest
        worst = float(np.abs(ours - stock).max()) / scale_of(stock)
        if not worst <= TOLERANCE:
            return f"{key} is off by {worst:.3g} of its size, allowed is {TOLERANCE:g}", largest
        largest = max(largest, worst)
    return "", largest


def _differing_keys(stock: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name the config keys that both sides understand differently."""
    ignored = {
        "_name_or_path",
        "name_or_path",
        "architectures",
        "dtype",
        "transformers_version",
        "_attn_implementation",
    }
    keys = sorted(key for key in {*stock, *ours} - ignored if stock.get(key) != ours.get(key))
    return f"; config.json is understood differently in {', '.join(keys[:4])}" if keys else ""


def _projections(output: Any) -> dict[str, Any]:
    flat = output.reshape(-1).astype(np.float64)
    signs = np.random.default_rng(0).integers(0, 2, (_SIGNS, flat.size)) * 2 - 1
    return {"scale": scale_of(output), "projections": [float(x) for x in signs @ flat / np.sqrt(flat.size)]}


def scale_of(output: Any) -> float:
    """Return the root mean square of an output."""
    return max(float(np.sqrt(np.mean(np.square(output, dtype=np.float64)))), 1e-30)


def _apart(values: Mapping[str, Any], recorded: Mapping[str, Any]) -> float:
    pairs = zip(values["projections"], recorded["projections"], strict=True)
    return max(abs(float(now) - float(then)) for now, then in pairs) / float(values["scale"])


def _sha256(arrays: list[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def lacks_memory(error: Exception) -> bool:
    """Tell whether memory ran out: torch raises a RuntimeError then, the system an OSError."""
    said = "allocate memory" in str(error)
    return isinstance(error, MemoryError) or said or getattr(error, "errno", None) == errno.ENOMEM


def _carry_out(request: Path) -> dict[str, Any]:
    asked = json.loads(request.read_text(encoding="utf-8"))
    options = {key: asked[key] for key in ("task", "part", "trust_remote_code")}
    return compare(open_model(asked["path"], **options))


def known(error: Exception) -> CompressorError | None:
    """Return the error of ours for one that says that memory ran out."""
    return ResourceError("no memory to load the model in float32") if lacks_memory(error) else None


if __name__ == "__main__":
    sys.exit(answer(Path(sys.argv[1]), Path(sys.argv[2]), _carry_out, known))
