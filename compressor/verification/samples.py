"""Probes for artifacts whose activations were calibrated: drawn from the calibration data, inside of its ranges.

Products in 8-bit integers clip what lies outside of the range that was calibrated. Random tokens and noise are further
out than any text or photograph, so an artifact that is good on its own data would fail on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.data.kinds import Batches, Inputs
from compressor.storage.grids import GridSpec

_IMAGES, _TOKENS = 16, 4096
_BLOCK = 4
_CODES = 255


def collect(batches: Batches) -> Inputs:
    """Return the first images [N, C, H, W] of calibration data, or its first tokens [N] without padding."""
    found: list[Any] = []
    for batch in batches:
        if "pixel_values" in batch:
            found.append(np.asarray(batch["pixel_values"], dtype=np.float32))
            if sum(map(len, found)) >= _IMAGES:
                break
        else:
            ids = np.asarray(batch["input_ids"], dtype=np.int64)
            mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)), dtype=np.int64)
            found.append(ids[mask > 0])
            if sum(map(len, found)) >= _TOKENS:
                break
    name = "pixel_values" if found and found[0].ndim == 4 else "input_ids"
    return {name: np.concatenate(found)[: _IMAGES if name == "pixel_values" else _TOKENS]}


def draw(probe: Inputs, calibration: Inputs, rng: np.random.Generator) -> Inputs:
    """Return a probe of the same shape, in the form that goes to disk, whose contents come from calibration data.

    Images lose detail: each block of a few pixels has its mean, so that they stay small on disk. One that stands for
    independent pixels keeps all of it.
    """
    if "input_ids" in probe:
        stream, (count, length) = calibration["input_ids"], probe["input_ids"].shape
        starts = rng.integers(0, max(1, len(stream) - length + 1), count)
        return {**probe, "input_ids": np.stack([np.resize(stream[start:], length) for start in starts])}
    images = calibration["pixel_values"]
    wanted = int(probe["noise"][1]) if "noise" in probe else len(probe["blocks"])
    chosen = images[rng.permutation(len(images))[np.arange(wanted) % len(images)]]
    count, channels, height, width = chosen.shape
    blocks = "blocks" in probe and height % _BLOCK == 0 and width % _BLOCK == 0
    block = _BLOCK if blocks else 1
    parts = chosen.reshape(count, channels, height // block, block, width // block, block)
    beside = {name: array for name, array in probe.items() if name not in ("noise", "blocks", "block")}
    return {"blocks": parts.mean(axis=(3, 5)), "block": np.asarray([block], np.int64), **beside}


@dataclass
class Clipped:
    """How many inputs of calibrated products were seen, and how many of them lie outside of their range."""

    seen: int = 0
    outside: int = 0

    @property
    def share(self) -> float:
        """Return the share of inputs that lie outside."""
        return self.outside / self.seen if self.seen else 0.0


@contextmanager
def clipping(model: Any, grids: Mapping[str, GridSpec]) -> Iterator[Clipped]:
    """While entered, count what the products of a torch module with calibrated inputs would clip."""
    found, handles = Clipped(), []

    def counter(spec: GridSpec) -> Any:
        low = -spec.input_zero_point * spec.input_scale
        high = (_CODES - spec.input_zero_point) * spec.input_scale
        slack = spec.input_scale / 2

        def count(_: Any, args: tuple[Any, ...]) -> None:
            x = args[0]
            found.seen += x.numel()
            found.outside += int(((x < low - slack) | (x > high + slack)).sum())

        return count

    try:
        for name, spec in grids.items():
            if spec.activations == "static":
                module = model.get_submodule(name)
                if hasattr(module, "in_features"):  # an embedding that is the head as well reads ids
                    handles.append(module.register_forward_pre_hook(counter(spec)))
        yield found
    finally:
        for handle in handles:
            handle.remove()
