"""Quantized weights of a safetensors artifact, dequantised by the rules of the compressed-tensors formats.

    w = (code − zero point) · scale,   both signed, one scale and zero point per output and group of inputs

The unpacking here shares nothing with the one that loads such models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.exporters.compressed_tensors import INPUT_SCALE, INPUT_ZERO_POINT, Layout
from compressor.measure.runner import read_config
from compressor.model.config import QUANTIZATION
from compressor.model.folder import ModelFolder, open_model
from compressor.storage.grids import GridSpec
from compressor.verification.verdict import Check, yes
from compressor.verification.weights import StoredWeights


def checkpoint_weights(weights: StoredWeights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every quantized weight of a folder: stored name of its codes, and float32 [outputs, inputs].

    Raises:
        ModelError: config.json describes no such model, or tensors are missing.
    """
    model = open_model(weights.folder)
    held: dict[str, str] = {}
    for name, (module,) in Layout(model).codes.items():
        stem, _, leaf = name.rpartition(".")
        spec = model.grids[module]
        # A tied head reads the codes of the embedding, which comes before it.
        codes = weights.stored(held.setdefault(module, name))
        if leaf == "weight_packed":
            codes = _unpacked(codes, spec.bits, int(weights.stored(f"{stem}.weight_shape")[1]))
        yield name, _values(codes, spec, stem, weights)


def _unpacked(words: NDArray[np.int32], bits: int, inputs: int) -> NDArray[np.int16]:
    """Return the signed codes [outputs, inputs] of words whose low bits come first."""
    per_word = 32 // bits
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    parts = (words.astype("<i4").view("<u4")[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    codes: NDArray[np.int16] = parts.reshape(len(words), -1)[:, :inputs].astype(np.int16)
    return np.subtract(codes, np.int16(1 << (bits - 1)), dtype=np.int16)


def _values(codes: NDArray[Any], spec: GridSpec, stem: str, weights: StoredWeights) -> NDArray[np.float32]:
    group = np.arange(codes.shape[1]) // (spec.group_size or codes.shape[1])
    values = codes.astype(np.float32)
    if not spec.symmetric:
        values -= weights.stored(f"{stem}.weight_zero_point").astype(np.float32)[:, group]
    return np.asarray(values * weights.stored(f"{stem}.weight_scale")[:, group], dtype=np.float32)


def check_scheme(weights: StoredWeights) -> list[Check]:
    """Check that what transformers reads of the grids (`quantization_config`) is what our loader reads of them."""
    model = open_model(weights.folder)
    stated = read_config(weights.folder).get(QUANTIZATION)
    checks = [
        yes(
            "weights.scheme",
            stated == Layout(model).config(),
            "config.json: quantization_config and compression_grids describe different grids",
        )
    ]
    if (tied := Layout(model).tied) is not None:
        same = all(np.array_equal(*pair) for pair in _tied_grids(weights, tied[0], _stem(model, tied[1])))
        checks.append(yes("weights.tied", same, f"{tied[0]} has another grid than {tied[1]}, whose weight it shares"))
    if wrong := [module for module, spec in model.grids.items() if not _inputs_agree(weights, model, module, spec)]:
        checks.append(yes("weights.inputs", False, f"input scales of {', '.join(wrong[:4])} are not those calibrated"))
    return checks


def _stem(model: ModelFolder, module: str) -> str:
    return model.weights.entry(f"{module}.weight").stored.removesuffix(".weight")


def _tied_grids(weights: StoredWeights, head: str, embedding: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for leaf in ("weight_scale", "weight_zero_point"):
        if f"{head}.{leaf}" in weights.table():
            yield weights.stored(f"{head}.{leaf}"), weights.stored(f"{embedding}.{leaf}")


def _inputs_agree(weights: StoredWeights, model: ModelFolder, module: str, spec: GridSpec) -> bool:
    stem = _stem(model, module)
    if f"{stem}.{INPUT_SCALE}" not in weights.table():
        return True
    scale, zero = (weights.stored(f"{stem}.{leaf}")[0] for leaf in (INPUT_SCALE, INPUT_ZERO_POINT))
    return bool(scale == np.float32(spec.input_scale) and int(zero) + 128 == spec.input_zero_point)
