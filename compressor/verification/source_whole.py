"""The source gate of a model of several parts: joined as we join them, they give what the whole stock model gives.

Each part by itself passes the gate of `compressor.verification.source`; here stock transformers' whole model scores
seeded images for seeded texts, or reads seeded images in seeded prompts, and so do the parts that this program reads.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor._lazy import lazy
from compressor.architectures.tasks import TASKS
from compressor.errors import ModelError
from compressor.machine.asking import answer, ask
from compressor.measure.zero_shot import joined
from compressor.model.folder import ModelFolder, open_model
from compressor.model.image_places import image_features
from compressor.model.image_size import call_options
from compressor.model.parts import image_token_of, joined_by, parts_of, read_scalars
from compressor.verification.source import DIFFERENCE, TOLERANCE, crash, known, loaded, record_of, scale_of
from compressor.verification.source_probes import Probe, outputs_of, probes_for

torch = lazy("torch")
transformers = lazy("transformers")

_PROMPT = 12
"""Tokens of a prompt beside those that stand for an image, at most."""


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
    token = image_token_of(folder)
    probe = _scored(parts) if token is None else _read(parts, token)
    output = "logits_per_image" if token is None else "logits"
    name, wanted = _stock(folder, probe, output)
    gc.collect()
    ours = _scores(folder, parts) if token is None else _logits(parts, probe, token)
    difference = float(np.abs(ours - wanted).max()) / scale_of(wanted) if ours.shape == wanted.shape else np.inf
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the parts of the model, joined, give other scores than stock transformers' {name}: {output} is off by"
            f" {difference:.3g} of its size, allowed is {TOLERANCE:g}",
            hint="The model, or a key of its config.json, is not covered. Please report it.",
        )
    return {**record_of(name, [probe], [{output: wanted}]), DIFFERENCE: difference}


def _inputs(part: ModelFolder) -> Probe:
    """Return a probe of several samples for a part."""
    return probes_for(part.config, part.family, part.task)[1]


def _scored(parts: Mapping[str, ModelFolder]) -> Probe:
    """Return images and texts, each of which is scored for each of the others."""
    return Probe("joined", {name: array for part in parts.values() for name, array in _inputs(part).inputs.items()})


def _read(parts: Mapping[str, ModelFolder], token: int) -> Probe:
    """Return prompts with an image each: a token, as many as its features that stand for it, and more tokens.

    Raises:
        ModelError: there are fewer positions than that.
    """
    (images, vision), (texts, language) = (
        next((_inputs(part), part) for part in parts.values() if part.family.inputs == reads)
        for reads in ("pixels", "tokens")
    )
    pixels, places = images.inputs["pixel_values"], image_features(vision)
    limit = int(getattr(language.config, "max_position_embeddings", None) or places + _PROMPT)
    if limit < places + 2:
        raise ModelError(f"an image has {places} features; the language model has {limit} positions")
    ids = texts.inputs["input_ids"][: len(pixels), : min(_PROMPT, limit - places)].copy()
    ids[ids == token] = 0 if token else 1
    ids = np.concatenate([ids[:, :1], np.full((len(ids), places), token), ids[:, 1:]], axis=1)
    return Probe("joined", {"pixel_values": pixels[: len(ids)], "input_ids": ids, "attention_mask": np.ones_like(ids)})


def _scores(folder: Path, parts: Mapping[str, ModelFolder]) -> Any:
    """Return the scores [images, texts] that our parts give."""
    embeddings: dict[str, Any] = {}
    for part, model in parts.items():
        found = outputs_of(model.load(), _inputs(model), model.family.pooled)
        pooled = next((found[key] for key in model.family.pooled if key in found), None)
        if pooled is None:
            raise ModelError(f"the part {part} gives no embedding of a whole sample, by which parts are joined")
        embeddings[model.family.inputs] = pooled.astype(np.float64)
    return joined(embeddings["pixels"], embeddings["tokens"], read_scalars(folder))


def _logits(parts: Mapping[str, ModelFolder], probe: Probe, token: int) -> Any:
    """Return the logits [prompts, tokens, vocabulary] that our parts give."""
    ids = torch.from_numpy(probe.inputs["input_ids"])
    with torch.inference_mode():
        vision, language = (
            next(part for part in parts.values() if part.family.inputs == reads) for reads in ("pixels", "tokens")
        )
        features = vision.load()(pixel_values=torch.from_numpy(probe.inputs["pixel_values"])).last_hidden_state
        gc.collect()
        model: Any = language.load()
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == token)[..., None].expand_as(embeds), features)
        mask = torch.from_numpy(probe.inputs["attention_mask"])
        return model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits.numpy()


def _stock(folder: Path, probe: Probe, output: str) -> tuple[str, Any]:
    """Return the class of the whole stock model, and an output of it."""
    stock = loaded(getattr(transformers, TASKS[joined_by(folder).task].auto_class), folder).eval()
    feed = {name: torch.from_numpy(array) for name, array in probe.inputs.items()}
    with torch.inference_mode():
        out = stock(**feed, **call_options(stock, feed["pixel_values"]), return_dict=True)
    return type(stock).__name__, out[output].to(torch.float32).numpy()


def _carry_out(request: Path) -> dict[str, Any]:
    return compare_whole(Path(json.loads(request.read_text(encoding="utf-8"))["path"]))


if __name__ == "__main__":
    sys.exit(answer(Path(sys.argv[1]), Path(sys.argv[2]), _carry_out, known))
