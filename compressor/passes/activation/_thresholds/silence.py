"""One block whose small activations become silent: thresholds found, gates installed, writers refit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.machine.memory import trim_heap
from compressor.model.blueprint import Blueprint, GateSpec
from compressor.model.modules import set_vector
from compressor.passes.numerics.moments import Moments, fit
from compressor.passes.numerics.quantiles import Magnitudes
from compressor.passes.surgery import slots
from compressor.passes.surgery.observe import (
    attention_half,
    channel_signals,
    ffn_half,
    reader_signal,
    relative_weights,
    unpadded,
)
from compressor.walk.calls import input_of, observing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.architectures import Family
    from compressor.passes.activation.thresholds import ThresholdOptions
    from compressor.walk import BlockView
else:
    torch = lazy("torch")

DAMPINGS = (0.01, 0.1, 1.0)
"""λ over the mean diagonal of E[h hᵀ], of which held-out calibration batches choose one."""
HELD_OUT = 5
"""Every so many batches one is held out."""
Gates = dict[str, GateSpec]


def activation_path(block: nn.Module, family: Family, method: str) -> str:
    """Return the path of the FFN's activation function in a block.

    Raises:
        ModelError: the FFN has no module of that kind by itself.
    """
    if family.ffn.activation is not None:
        return family.ffn.activation
    found = [
        f"{family.ffn.module}.{name}"
        for name, part in block.get_submodule(str(family.ffn.module)).named_children()
        if not isinstance(part, torch.nn.Dropout) and not list(part.parameters())
    ]
    if len(found) != 1:
        raise ModelError(f"{method}: family {family.name}: the FFN has no activation function that can be gated")
    return found[0]


def paths(block: nn.Module, family: Family, options: ThresholdOptions, method: str) -> list[str]:
    """Return the paths in a block of the modules that get gates."""
    attention, ffn = family.attention, family.ffn
    if options.at == "inputs":
        return [*attention.readers, attention.output, *ffn.reader_paths, ffn.writer]
    of_attention = [attention.query.path, attention.output] if options.attention else []
    return [*of_attention, ffn.writer if options.by == "largest" else activation_path(block, family, method)]


def per_channel(path: str, family: Family, options: ThresholdOptions) -> bool:
    """Tell whether the gate at a path has a threshold for each channel: of those, the activation function's alone."""
    return options.by == "contribution" and path not in (family.attention.query.path, family.attention.output)


def silence(
    block: BlockView, options: ThresholdOptions, planned: Blueprint, method: str
) -> tuple[Gates, dict[str, float]]:
    """Gate a block in place and bring both streams to its end; return its gates and measured figures."""
    wanted, gates = set(paths(block.module, block.family, options, method)), Gates()

    def install(path: str, gate: GateSpec) -> None:
        from compressor.model.skeleton import install_gates

        gates[path] = gate
        blueprint = replace(planned, gates={block.name_of(path): gate})
        install_gates(block.module, blueprint, block.name_of(""))

    attention = block.family.attention
    _gate_inputs(block, options, wanted, attention.readers, _read(block, attention.norm, middle=False), install)
    if attention.output in wanted:
        _gate_inputs(block, options, wanted, [attention.output], lambda k: _heads(block, k), install)
    figures = _to_middle(block, repair=options.repair)
    _gate_ffn(block, options, wanted, install)
    return gates, {**figures, **_to_end(block, repair=options.repair)}


def _read(block: BlockView, norm: str, *, middle: bool) -> Callable[[int], torch.Tensor]:
    """Return what gives the input of a half's readers for batch k, [tokens, width], without padding."""

    def signal(k: int) -> torch.Tensor:
        stream = block.current_middle(k) if middle else block.current_in(k)
        return unpadded(reader_signal(block, block.module, stream, norm), block.token_mask(k, like=stream))

    return signal


def _heads(block: BlockView, k: int) -> torch.Tensor:
    """Return the input of attention's output matrix for batch k, [tokens, heads · width], without padding."""
    current = block.current_in(k)
    heads = input_of(block.module, block.family.attention.output, current, block.call(k))
    return unpadded(heads.reshape(*current.shape[:2], -1), block.token_mask(k))


def _gate_inputs(
    block: BlockView,
    options: ThresholdOptions,
    wanted: set[str],
    readers: list[str] | tuple[str, ...],
    signal: Callable[[int], torch.Tensor],
    install: Callable[[str, GateSpec], None],
) -> None:
    """Give the readers of one signal, as far as they are wanted, its threshold."""
    if not (chosen := [path for path in readers if path in wanted]):
        return
    seen = Magnitudes()
    for k in range(len(block)):
        seen.add(signal(k))
    for path in chosen:
        install(path, GateSpec(seen.quantile(options.sparsity)))


def _gate_ffn(
    block: BlockView, options: ThresholdOptions, wanted: set[str], install: Callable[[str, GateSpec], None]
) -> None:
    ffn = block.family.ffn
    if options.by == "largest":
        channels = block.layer.intermediate_size
        install(ffn.writer, GateSpec(count=max(round((1 - options.sparsity) * channels), 1)))
        return
    if options.at == "inputs":
        _gate_inputs(block, options, wanted, ffn.reader_paths, _read(block, ffn.norm, middle=True), install)
        _gate_inputs(block, options, wanted, [ffn.writer], lambda k: _channels(block, k), install)
        return
    (path,) = wanted - {block.family.attention.query.path, block.family.attention.output}
    scale = _mean_partner(block) if options.by == "contribution" else None
    seen = Magnitudes()
    for k in range(len(block)):
        values = _outputs(block, path, k)
        seen.add(values if scale is None else values * scale)
    threshold = seen.quantile(options.sparsity)
    if scale is None:
        install(path, GateSpec(threshold))
        return
    install(path, GateSpec(per_channel=True))
    # A channel whose partner never speaks adds nothing, whatever its threshold.
    each = threshold / scale.clamp_min(1e-6 * float(scale.max()) + 1e-30)
    set_vector(block.module, f"{path}.threshold", each.float())


def _channels(block: BlockView, k: int) -> torch.Tensor:
    """Return the input of the FFN's writer for batch k, [tokens, channels], without padding."""
    middle = block.current_middle(k)
    return unpadded(channel_signals(block, block.module, middle, k), block.token_mask(k, like=middle))


def _outputs(block: BlockView, path: str, k: int) -> torch.Tensor:
    """Return what the FFN's module at `path` gives for batch k, [tokens, channels], without padding."""
    found: list[torch.Tensor] = []
    middle = block.current_middle(k)
    with observing(block.module, [path], lambda _, out: found.append(out), outputs=True):
        channel_signals(block, block.module, middle, k)
    return unpadded(found[0].reshape(*middle.shape[:2], -1), block.token_mask(k, like=middle))


def _mean_partner(block: BlockView) -> torch.Tensor:
    """Return E|u| of what the activation's values are multiplied by, [channels]; 1 in an FFN without a gate."""
    device = block.current_middle(0).device
    if not block.family.ffn.gated:
        return torch.ones(block.layer.intermediate_size, device=device)
    total, tokens = torch.zeros(block.layer.intermediate_size, dtype=torch.float64, device=device), 0
    for k in range(len(block)):
        values = _outputs(block, block.family.ffn.reader_paths[1], k)
        total += values.abs().sum(0)
        tokens += len(values)
    return (total / max(tokens, 1)).float()


class _Seen:
    """Moments of what a writer reads and should write, of all batches and of those that are held out."""

    def __init__(self, block: BlockView, path: str) -> None:
        writer = slots.read(block.module, path)
        self.used, self.held = (Moments(writer.shape[1], writer.shape[0], writer.device) for _ in range(2))

    def add(self, k: int, inputs: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> None:
        """See batch k: inputs [tokens, inputs], what should be written [tokens, outputs], weights [tokens]."""
        (self.held if k % HELD_OUT == HELD_OUT - 1 else self.used).add(inputs, wanted, weights)


def _refit(block: BlockView, path: str, seen: _Seen) -> dict[str, float]:
    """Refit a writer where that helps on held-out batches, which also choose λ; return errors before and after."""
    weight, bias = slots.read(block.module, path), slots.read_bias(block.module, path)
    judged = seen.held if seen.held.count > 0 else seen.used
    before = judged.error_of(weight, bias)
    tried = {}
    for damping in DAMPINGS:
        found = fit(seen.used, damping=damping, bias=bias is not None, prior=weight)
        tried[damping] = judged.error_of(found.weight, found.bias)
    best = min(tried, key=lambda damping: tried[damping])
    if tried[best] >= before:
        return {"error_before": before, "error_after": before}
    after = tried[best]
    seen.used.join(seen.held)
    found = fit(seen.used, damping=best, bias=bias is not None, prior=weight)
    slots.write(block.module, path, found.weight, found.bias)
    return {"error_before": before, "error_after": after}


def _to_middle(block: BlockView, *, repair: bool) -> dict[str, float]:
    """Bring the streams between attention and FFN; with repair, refit attention's output matrix before."""
    path, figures = block.family.attention.output, dict[str, float]()
    if repair:
        seen = _Seen(block, path)
        for k in range(len(block)):
            dense_in, mask = block.dense_in(k), block.token_mask(k)
            middle, written = attention_half(block, block.dense, dense_in, k)
            missed = unpadded(dense_in + written - block.current_in(k), mask)
            seen.add(k, _heads(block, k), missed, relative_weights(unpadded(dense_in, mask)))
            block.put_dense_middle(k, middle)
        figures = {f"attention_{name}": value for name, value in _refit(block, path, seen).items()}
    block.seal()
    for k in range(len(block)):
        block.put_current_middle(k, block.to_middle(block.module, block.current_in(k), k))
    return figures


def _to_end(block: BlockView, *, repair: bool) -> dict[str, float]:
    """Bring the streams behind the block; with repair, refit the FFN's writer before."""
    path, figures = block.family.ffn.writer, dict[str, float]()
    if repair:
        seen = _Seen(block, path)
        for k in range(len(block)):
            dense, current = block.dense_middle(k), block.current_middle(k)
            mask = block.token_mask(k, like=current)
            out, written = ffn_half(block, block.dense, dense, k)
            wanted = unpadded(dense + written - current, mask)
            seen.add(k, _channels(block, k), wanted, relative_weights(unpadded(dense, mask)))
            block.put_dense(k, out)
        figures = {f"ffn_{name}": value for name, value in _refit(block, path, seen).items()}
    block.seal()
    trim_heap()
    for k in range(len(block)):
        block.put_current(k, block.from_middle(block.module, block.current_middle(k), k))
    return figures
