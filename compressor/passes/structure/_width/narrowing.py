"""The change of one block: refit attention to the dense stream, choose channels, cut, refit the FFN's writer.

Second moments weigh each token by 1 / mean square of its dense residual: norms divide every token by that, so a token's
error counts relative to its own stream, and few loud tokens do not decide for all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.machine.memory import trim_heap
from compressor.passes.numerics.elimination import eliminate
from compressor.passes.numerics.moments import LinearFit, Moments, fit
from compressor.passes.structure._width.importance import channels_of, score
from compressor.passes.structure._width.refine import Sample, moments_of, refine_readers
from compressor.passes.surgery import slots
from compressor.passes.surgery.channels import compose, keep_channels
from compressor.passes.surgery.observe import (
    attention_half,
    channel_signals,
    ffn_half,
    reader_signal,
    relative_weights,
    unpadded,
)
from compressor.walk.calls import input_of
from compressor.walk.sampling import LEAST_TOKENS

if TYPE_CHECKING:
    import torch

    from compressor.passes.structure._width.options import WidthOptions
    from compressor.walk import BlockView
else:
    torch = lazy("torch")

# Maps of the residual width are small and start from weights that are nearly right: little data settles them.
REFIT_DAMPING = 0.01
REFIT_TOKENS_PER_INPUT = 64
# Which channels stay, and the writer while readers are refit, are settled by part of the data; its last fit sees all.
CHOOSE_TOKENS_PER_CHANNEL = 10
LEAST_TO_CHOOSE = LEAST_TOKENS // 2


def narrow(block: BlockView, width: int, options: WidthOptions) -> dict[str, float]:
    """Cut the FFN of `block` to `width` channels, in place; return measured figures."""
    if not options.reconstruct:
        return _narrow_only(block, width, options)
    refit = options.refit and block.index > 0 and block.family.residual != "parallel"
    few = _every(block.current_in(0), len(block), REFIT_TOKENS_PER_INPUT, block.layer.residual[0])
    if refit:
        _refit_readers(block, few, attention=True)
    figures = _advance_attention(block, few if refit else 0)
    if refit:
        _refit_readers(block, few, attention=False)
    figures.update(_narrow_and_refit(block, width, options))
    block.seal()
    trim_heap()
    for k in range(len(block)):
        block.put_current(k, block.from_middle(block.module, block.current_middle(k), k))
    return figures


def _every(stream: torch.Tensor, batches: int, tokens_per_input: int, inputs: int, least: int = LEAST_TOKENS) -> int:
    """Return n such that every n-th of batches like `stream` has about `tokens_per_input` tokens per input of a map."""
    tokens = stream.shape[0] * stream.shape[1] * batches
    return max(1, tokens // max(tokens_per_input * inputs, least))


def _refit_readers(block: BlockView, every: int, *, attention: bool) -> None:
    """Refit readers of attention or FFN to read the dense block's input, as predicted from the current one."""
    family = block.family
    paths = family.attention.readers if attention else family.ffn.reader_paths
    norm = family.attention.norm if attention else family.ffn.norm
    width = block.layer.residual[0 if attention else 1]
    device = slots.read(block.module, paths[0]).device
    moments = Moments(width, width, device)
    for k in range(0, len(block), every):
        dense = block.dense_in(k) if attention else block.dense_middle(k)
        current = block.current_in(k) if attention else block.current_middle(k)
        mask = block.token_mask(k, like=current)
        wanted = reader_signal(block, block.dense, dense, norm)
        given = reader_signal(block, block.module, current, norm)
        moments.add(unpadded(given, mask), unpadded(wanted, mask))
    has_bias = all(slots.read_bias(block.module, path) is not None for path in paths)
    same = torch.eye(width, dtype=torch.float64, device=device)
    found = fit(moments, damping=REFIT_DAMPING, bias=has_bias, prior=same)
    compose(block.module, paths, found.weight, found.bias)


def _advance_attention(block: BlockView, every: int) -> dict[str, float]:
    """Bring both streams to the middle; refit attention's output matrix on the way by every n-th batch (0: not)."""
    path, kept = block.family.attention.output, block.scratch()
    figures: dict[str, float] = {}
    inputs, outputs = slots.read(block.module, path).shape[::-1]
    moments = Moments(inputs, outputs, block.current_in(0).device)
    for k in range(len(block)):
        dense_in = block.dense_in(k)
        dense_middle, written = attention_half(block, block.dense, dense_in, k)
        if every and k % every == 0:
            current = block.current_in(k)
            heads, mask = input_of(block.module, path, current, block.call(k)), block.token_mask(k)
            if block.family.residual == "pre":
                kept[k] = heads
            # In post-norm families attention writes to the sum before the norm, so the middle is of no use here.
            wanted = unpadded(dense_in + written - current, mask)
            moments.add(
                unpadded(heads.reshape(*current.shape[:2], -1), mask),
                wanted,
                relative_weights(unpadded(dense_in, mask)),
            )
        block.put_dense_middle(k, dense_middle)
    if every:
        figures["attention_error"] = _assign_fit(block, path, moments)
        block.seal()
    for k in range(len(block)):
        if k in kept:
            middle = block.middle_of_heads(kept[k], k)
        else:
            middle = block.to_middle(block.module, block.current_in(k), k)
        block.put_current_middle(k, middle)
    kept.clear()
    return figures


def _assign_fit(block: BlockView, path: str, moments: Moments) -> float:
    has_bias = slots.read_bias(block.module, path) is not None
    found = fit(moments, damping=REFIT_DAMPING, bias=has_bias, prior=slots.read(block.module, path))
    slots.write(block.module, path, found.weight, found.bias)
    return found.error


def _narrow_and_refit(block: BlockView, width: int, options: WidthOptions) -> dict[str, float]:
    """Advance the dense stream to the block's output, choose channels, cut and refit."""
    targets, weights = block.scratch(), {}
    for k in range(len(block)):
        dense_middle = block.dense_middle(k)
        mask = block.token_mask(k, like=dense_middle)
        out, written = ffn_half(block, block.dense, dense_middle, k)
        targets[k] = unpadded(dense_middle + written - block.current_middle(k), mask)
        weights[k] = relative_weights(unpadded(dense_middle, mask))[:, None]
        block.put_dense(k, out)
    sample = Sample(list(range(len(block))), targets, weights)
    narrower = width < block.layer.intermediate_size
    first, middle = sample, block.current_middle(0)
    if options.refine and narrower:
        channels = block.layer.intermediate_size
        few = _every(middle, len(block), CHOOSE_TOKENS_PER_CHANNEL, channels, LEAST_TO_CHOOSE)
        first = replace(sample, batches=sample.batches[::few])
    error = _fit_writer(block, _writer_moments(block, first), options, width if narrower else None)
    figures = {"kept_channels": float(width)}
    if options.refine and narrower:
        every = _every(middle, len(block), REFIT_TOKENS_PER_INPUT, block.layer.residual[1])
        figures["refined_error"], moments = refine_readers(block, replace(sample, batches=sample.batches[::every]))
        error = _fit_writer(block, moments if every == 1 else _writer_moments(block, sample), options)
    targets.clear()
    return {**figures, "reconstruction_error": error}


def _writer_moments(block: BlockView, sample: Sample) -> Moments:
    """Return the moments of the FFN's channels, as they now are, and of what its writer should add to the middle."""
    moments = moments_of(block)
    for k in sample.batches:
        middle = block.current_middle(k)
        signals = unpadded(channel_signals(block, block.module, middle, k), block.token_mask(k, like=middle))
        moments.add(signals, sample.targets[k].to(signals.device), sample.weights[k][:, 0])
    return moments


def _fit_writer(block: BlockView, moments: Moments, options: WidthOptions, width: int | None = None) -> float:
    """Cut the FFN to `width` channels (None: all stay) and refit its writer; return the relative error."""
    writer = block.family.ffn.writer
    has_bias = slots.read_bias(block.module, writer) is not None
    kept = None if width is None else _choose(block, moments, width, options)
    found = fit(moments, kept, damping=options.damping, bias=has_bias, prior=slots.read(block.module, writer))
    if kept is not None:
        keep_channels(block.module, block.family, kept)
    slots.write(block.module, writer, found.weight, found.bias)
    return found.error


def _choose(block: BlockView, moments: Moments, width: int, options: WidthOptions) -> torch.Tensor:
    """Return the sorted indices of the channels that stay."""
    channels = block.layer.intermediate_size
    if options.importance != "obs":
        scores = score(options.importance, channels_of(block, moments, options.seed))
        return scores.argsort(stable=True)[channels - width :].sort().values
    has_bias = slots.read_bias(block.module, block.family.ffn.writer) is not None
    seen = moments.centred() if has_bias else moments
    whole: LinearFit = fit(moments, damping=options.damping, bias=has_bias)
    return eliminate(whole.weight, seen.gram, keep=width, damping=options.damping).kept(width, channels)


def _narrow_only(block: BlockView, width: int, options: WidthOptions) -> dict[str, float]:
    """Cut without making up for it."""
    channels = block.layer.intermediate_size
    moments = Moments(channels, 0, block.current_in(0).device)
    for k in range(len(block)):
        middle = block.to_middle(block.module, block.current_in(k), k)
        block.put_current_middle(k, middle)
        signals = unpadded(channel_signals(block, block.module, middle, k), block.token_mask(k, like=middle))
        moments.add(signals, signals[:, :0])
    if options.importance == "obs":
        writer = slots.read(block.module, block.family.ffn.writer)
        kept = eliminate(writer, moments.gram, keep=width, damping=options.damping).kept(width, channels)
    else:
        kept = _choose(block, moments, width, options)
    keep_channels(block.module, block.family, kept)
    return {"kept_channels": float(width)}
