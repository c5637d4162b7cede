"""Peak memory and time of a run, estimated before it."""

from __future__ import annotations

import time
from functools import cache

import psutil
import torch

from compressor.architectures import StackShapes
from compressor.data.reading import IMAGE_BATCH, SENTENCE_BATCH, text_batch
from compressor.machine.threads import fixed_threads
from compressor.measure.evaluation import LOGIT_BUDGET, TEXT_WINDOWS
from compressor.model.cost import image_tokens
from compressor.pipeline.prepare import Prepared
from compressor.walk.sampling import thinning

_FLOAT = 4
_DOUBLE = 8
_LIBRARIES = 100 << 20
"""onnx, onnxscript and onnx_ir, which a run imports and a plan does not (measured)."""
_TRACE = 56 << 20
_TRACE_PER_BLOCK = 1 << 19
"""A traced graph with what the tracer keeps beside it, and the nodes of a block, whatever its width (measured)."""
_STATISTICS = 4
"""Square float64 matrices over FFN channels that a pass holds at once: moments, their factor, work."""
_LOGITS = 4
"""Tensors of a batch's logits at once: drawn labels and a gradient in a survey; parts and a whole, of two models, in a
measurement."""
_WORKING = 6
"""Tensors of a batch at the FFN's width that live at once in a block's forward pass."""


def estimate_memory(prepared: Prepared) -> int:
    """Return the bytes at the peak of a run: interpreter and two blocks, activations and statistics, or stem and tail.

    The interpreter is this process as it is now, with torch and transformers loaded.
    """
    interpreter = int(psutil.Process().memory_info().rss) + _LIBRARIES
    trace = _TRACE + _TRACE_PER_BLOCK * len(prepared.blueprints[0].shapes.layers)
    export = trace + 3 * _FLOAT * _largest_matrix(prepared.blueprints[0].shapes, _vocabulary(prepared))
    # The export reuses only a part of what the passes have freed.
    passes = [_walk_memory(prepared, before.shapes) + trace // 2 for before in prepared.blueprints[:-1]]
    return interpreter + max([export, _ends_memory(prepared), *passes])


def _vocabulary(prepared: Prepared) -> int:
    return int(getattr(prepared.source.config, "vocab_size", 0) or 0)


def _largest_matrix(shapes: StackShapes, vocabulary: int) -> int:
    widest = max((layer.intermediate_size for layer in shapes.layers), default=0)
    return shapes.hidden_size * max(vocabulary, widest)


def _ends_memory(prepared: Prepared) -> int:
    """Return the bytes of stem, tail and logits: in a survey, or of two models that are compared after a pass."""
    blueprint, vocabulary = prepared.blueprints[0], _vocabulary(prepared)
    shapes = blueprint.shapes
    has_head = prepared.source.task == "text-generation"
    outside = _FLOAT * shapes.hidden_size * vocabulary * (1 if blueprint.tied or not has_head else 2)
    if not has_head:
        return outside
    # While a tail is narrowed, its old and new weights and float64 copies are held together.
    tail = outside + 2 * _DOUBLE * shapes.hidden_size * vocabulary
    surveyed = outside + _LOGITS * _FLOAT * _tokens(prepared)[0] * vocabulary
    if prepared.evaluation is None:
        return max(tail, surveyed)
    window = prepared.evaluation.length * vocabulary
    logits = _FLOAT * min(TEXT_WINDOWS * window, max(LOGIT_BUDGET, window))
    return max(tail, surveyed, 2 * outside + _LOGITS * logits)


def _walk_memory(prepared: Prepared, shapes: StackShapes) -> int:
    """Return the bytes that a pass takes while blocks are walked."""
    layer = max(shapes.layers, key=lambda item: item.intermediate_size)
    hidden, width = shapes.hidden_size, layer.intermediate_size
    attention = hidden * shapes.head_dim * (2 * layer.num_attention_heads + 2 * layer.num_key_value_heads)
    block = attention + len(prepared.source.family.ffn.readers) * hidden * width + hidden * width
    batch_tokens, all_tokens = _tokens(prepared)
    activations = 2 * all_tokens * hidden * _FLOAT
    section = prepared.recipe.calibration
    if section is not None:
        activations = min(activations, section.cache_memory)
    working = batch_tokens * _WORKING * max(width, hidden) * _FLOAT
    statistics = _STATISTICS * (width * width + width * hidden) * _DOUBLE
    return 2 * block * _FLOAT + activations + working + statistics


def _tokens(prepared: Prepared) -> tuple[int, int]:
    """Return the tokens of one calibration batch and of all."""
    request = prepared.calibration
    if request is None or request.samples is None:
        return 0, 0
    if prepared.source.family.inputs == "pixels":
        tokens = image_tokens(prepared.source)
        return IMAGE_BATCH * tokens, request.samples * tokens
    if prepared.source.task == "text-generation":
        return text_batch(request.length) * request.length, request.samples * request.length
    # Sentences are padded to the longest of their batch; a quarter of the limit is typical.
    return SENTENCE_BATCH * request.length // 4, request.samples * request.length // 4


@cache
def _flops_per_second(threads: int) -> float:
    """Measure one matrix product on this machine, with the threads that a run uses."""
    a = torch.ones(768, 768)
    seconds = []
    with fixed_threads(threads):
        torch.mm(a, a)
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(a, a)
            seconds.append(time.perf_counter() - start)
    return 2 * 768**3 / min(seconds)


def estimate_seconds(prepared: Prepared, flops: int) -> float:
    """Return roughly how long the passes take; `flops` are those of one dense sample."""
    request = prepared.calibration
    if request is None or request.samples is None:
        return 0.0
    return _pass_seconds(prepared, request.samples, flops)


def samples_at_half(prepared: Prepared, flops: int) -> dict[str, float] | None:
    """Return the most calibration `samples` with which the passes take about half as long, and those `seconds`.

    None where no pass looks at calibration data, or there is next to none.
    """
    request = prepared.calibration
    if request is None or request.samples is None:
        return None
    half = 0.5 * _pass_seconds(prepared, request.samples, flops)
    for samples in range(request.samples - 1, 0, -1):
        seconds = _pass_seconds(prepared, samples, flops)
        if 0 < seconds <= 1.05 * half:
            return {"samples": samples, "seconds": seconds}
    return None


def _pass_seconds(prepared: Prepared, samples: int, flops: int) -> float:
    """Return the seconds of all passes with so many calibration samples.

    A walk costs one forward pass of the dense model over the tokens that it looks at, and the last one, which changes
    the blocks, one more for each stream: measured, with half of the rate of a large product.
    """
    request, total = prepared.calibration, 0.0
    assert request is not None and request.samples is not None
    tokens = _tokens(prepared)[1] // request.samples * samples
    for method, before in zip(prepared.passes, prepared.blueprints, strict=False):
        needs = method.needs
        if needs.calibration == "none":
            continue
        forwards, part = needs.walks + (2 if needs.dense else 1), 1
        if needs.tokens_per_channel is not None:
            part = thinning(tokens, before.shapes, needs.tokens_per_channel)
        total += forwards * samples / part
    return total * flops / (0.5 * _flops_per_second(prepared.recipe.threads))
