"""Probes of the source gate: seeded inputs of several lengths, batches and paddings, and what a model makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from compressor._lazy import lazy
from compressor.architectures import Family
from compressor.model.image_size import call_options

torch = lazy("torch")

Outputs: TypeAlias = dict[str, Any]
"""Name of an output -> float32 array; of padded tokens nothing."""
_SEED = 0
_LONGEST = 160
_TEXTS = (("single", 1, _LONGEST, ""), ("batch", 3, 17, ""), ("right_padded", 2, 12, "right"))
_LEFT = ("left_padded", 2, 12, "left")
_IMAGES = (("single", 1), ("batch", 2))
_OUTPUTS = ("logits", "last_hidden_state", "cls_logits", "distillation_logits")


@dataclass(frozen=True)
class Probe:
    """One input.

    Attributes:
        name: of the probe.
        inputs: arrays by the name of the model's argument.
    """

    name: str
    inputs: dict[str, Any]


def probes_for(config: Any, family: Family, task: str) -> list[Probe]:
    """Return the probes of a model, by its transformers config; the same for the same config.

    Tokens are spread evenly over the vocabulary, in random order.
    """
    rng = np.random.default_rng(_SEED)
    if family.inputs == "pixels":
        size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        shape = (config.num_channels, *size)
        return [
            Probe(name, {"pixel_values": rng.standard_normal((batch, *shape)).astype(np.float32)})
            for name, batch in _IMAGES
        ]
    limit = int(getattr(config, "max_position_embeddings", None) or _LONGEST)
    cases = (*_TEXTS, _LEFT) if task == "text-generation" else _TEXTS
    return [
        Probe(name, _text(rng, config, family, (batch, max(1, min(length, limit))), padding))
        for name, batch, length, padding in cases
        if not (padding and family.full_length)
    ]


def _text(rng: Any, config: Any, family: Family, shape: tuple[int, int], padding: str) -> dict[str, Any]:
    count = shape[0] * shape[1]
    spread = (np.arange(count) + rng.random(count)) * config.vocab_size / count
    mask = np.ones(shape, np.int64)
    cut = shape[1] // 2
    if padding == "right":
        mask[1:, shape[1] - cut :] = 0
    elif padding == "left":
        mask[1:, :cut] = 0
    ids = rng.permutation(spread.astype(np.int64)).reshape(shape)
    if family.full_length:
        return {"input_ids": ids}
    if family.pooled and isinstance(config.eos_token_id, int):  # the place that the embedding is taken from
        ids[np.arange(shape[0]), mask.sum(axis=1) - 1] = config.eos_token_id
    inputs = {"input_ids": ids, "attention_mask": mask}
    if int(getattr(config, "type_vocab_size", None) or 0) > 1:
        inputs["token_type_ids"] = np.repeat((np.arange(shape[1]) >= shape[1] // 3)[None], shape[0], 0).astype(np.int64)
    return inputs


def outputs_of(model: Any, probe: Probe, pooled: Sequence[str] = ()) -> Outputs:
    """Return what a torch model in eval mode gives for a probe; `pooled` are more outputs to compare."""
    accepted = inspect.signature(model.forward).parameters
    feed = {name: torch.from_numpy(array) for name, array in probe.inputs.items() if name in accepted}
    options = call_options(model, feed["pixel_values"]) if "pixel_values" in feed else {}
    if "use_cache" in accepted:
        options["use_cache"] = False
    with torch.inference_mode():
        given = model(**feed, **options, return_dict=True)
    mask = probe.inputs.get("attention_mask")
    found: Outputs = {}
    for name in (*_OUTPUTS, *pooled):
        if given.get(name) is not None:
            array = given[name].to(torch.float32).numpy()
            found[name] = array[mask > 0] if mask is not None and array.ndim == 3 else array
    return found
