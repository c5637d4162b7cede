"""The source gate of a model of several parts: joined as we join them, they give what the whole stock model gives.

Each part by itself passes the gate of `compressor.verification.source`; here stock transformers' whole model scores
seeded images for seeded texts, and so do the parts that this program reads, with the numbers that join them.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from compressor._lazy import lazy
from compressor.architectures.tasks import TASKS
from compressor.errors import ModelError
from compressor.machine.asking import answer, ask
from compressor.measure.zero_shot import joined
from compressor.model.folder import open_model
from compressor.model.image_size import call_options
from compressor.model.parts import joined_by, parts_of, read_scalars
from compressor.verification.source import DIFFERENCE, TOLERANCE, crash, known, loaded, record_of, scale_of
from compressor.verification.source_probes import Probe, outputs_of, probes_for

torch = lazy("torch")
transformers = lazy("transformers")

_OUTPUT = "logits_per_image"


def run_whole_gate(folder: Path) -> dict[str, Any]:
    """Compare a model of several parts with what stock transformers loads, in a process of its own.

    Returns:
        The facts to be recorded.

    Raises:
        ModelError: stock transformers does not load it, or gives other scores than the parts joined.
        ResourceError: the process was killed for want of memory.
    """
    found: dict[str, Any] = ask(__name__, {"path": str(folder.resolve())}, crashed=crash)
    return found


def compare_whole(folder: Path) -> dict[str, Any]:
    """Compare in this process; of all models only one is in memory at a time.

    Raises:
        ModelError: as `run_whole_gate` says.
    """
    parts = {part: open_model(folder, part=part) for part in parts_of(folder)}
    probes = {part: probes_for(model.config, model.family, model.task)[1] for part, model in parts.items()}
    probe = Probe("joined", {name: array for one in probes.values() for name, array in one.inputs.items()})
    name, wanted = _stock(folder, probe)
    gc.collect()
    embeddings: dict[str, Any] = {}
    for part, model in parts.items():
        found = outputs_of(model.load(), probes[part], model.family.pooled)
        pooled = next((found[key] for key in model.family.pooled if key in found), None)
        if pooled is None:
            raise ModelError(f"the part {part} gives no embedding of a whole sample, by which parts are joined")
        embeddings[model.family.inputs] = pooled.astype(np.float64)
    ours = joined(embeddings["pixels"], embeddings["tokens"], read_scalars(folder))
    difference = float(np.abs(ours - wanted).max()) / scale_of(wanted) if ours.shape == wanted.shape else np.inf
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the parts of the model, joined, give other scores than stock transformers' {name}: {_OUTPUT} is off by"
            f" {difference:.3g} of its size, allowed is {TOLERANCE:g}",
            hint="The model, or a key of its config.json, is not covered. Please report it.",
        )
    return {**record_of(name, [probe], [{_OUTPUT: wanted}]), DIFFERENCE: difference}


def _stock(folder: Path, probe: Probe) -> tuple[str, Any]:
    """Return the class of the whole stock model, and its scores [images, texts]."""
    stock = loaded(getattr(transformers, TASKS[joined_by(folder).task].auto_class), folder).eval()
    feed = {name: torch.from_numpy(array) for name, array in probe.inputs.items()}
    with torch.inference_mode():
        out = stock(**feed, **call_options(stock, feed["pixel_values"]), return_dict=True)
    return type(stock).__name__, out[_OUTPUT].to(torch.float32).numpy()


def _carry_out(request: Path) -> dict[str, Any]:
    return compare_whole(Path(json.loads(request.read_text(encoding="utf-8"))["path"]))


if __name__ == "__main__":
    sys.exit(answer(Path(sys.argv[1]), Path(sys.argv[2]), _carry_out, known))
