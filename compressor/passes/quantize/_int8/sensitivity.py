"""How much each group of products loses to 8-bit codes, and which groups to spare under a budget.

A group is the modules of a block that share an input. Its loss is measured with everything else in float: the relative
change of the block's output without padding, E‖y − ŷ‖² / E‖y‖², when this group alone computes with rounded inputs and
weights. Relative changes of blocks add up to that of the model's output, roughly, so they can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import Sharing, attention_sharings, ffn_sharings
from compressor.walk.calls import observing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView
else:
    torch = lazy("torch")


def block_losses(block: BlockView, levels: int) -> torch.Tensor:
    """Return the loss of each sharing of a block of the dense stream, inputs evened out, [sharings] float64."""
    from compressor.passes.surgery.observe import unpadded

    groups = (*attention_sharings(block.family), *ffn_sharings(block.family))
    factors = _factors(block, groups, levels)
    lost, whole = torch.zeros(len(groups), dtype=torch.float64), 0.0
    for k in range(len(block)):
        hidden = block.dense_in(k)
        after = block.forward(block.module, hidden, k)
        mask = block.token_mask(k, like=after)
        plain = unpadded(after, mask).double()
        whole += float(plain.square().sum())
        for index, sharing in enumerate(groups):
            with rounded(block.module, sharing, factors[sharing.paths[0]], levels):
                out = unpadded(block.forward(block.module, hidden, k), mask).double()
            lost[index] += (out - plain).square().sum().cpu()
    return lost / max(whole, 1e-30)


def _factors(block: BlockView, groups: Sequence[Sharing], levels: int) -> dict[str, torch.Tensor]:
    """Return the factors that even out each sharing's input, by the path of its first module."""
    from compressor.passes.quantize._int8.ranges import ChannelRanges
    from compressor.passes.quantize._int8.smooth import find_factors

    ranges = {sharing.paths[0]: ChannelRanges() for sharing in groups}
    for k in range(len(block)):

        def note(path: str, inputs: torch.Tensor, k: int = k) -> None:
            ranges[path].add(inputs, block.token_mask(k, like=inputs), padding=True)

        with observing(block.module, ranges, note):
            block.forward(block.module, block.dense_in(k), k)
    found = {}
    for sharing in groups:
        weight = torch.cat([slots.read(block.module, path) for path in sharing.paths])
        found[sharing.paths[0]] = find_factors(weight, ranges[sharing.paths[0]], levels)[0]
    return found


@contextmanager
def rounded(module: nn.Module, sharing: Sharing, factors: torch.Tensor, levels: int) -> Iterator[None]:
    """While entered, the modules of a sharing compute with 8-bit codes of factors ⊙ input and of weight / factors."""
    from compressor.storage.grids import GridSpec, fit_rows

    def round_input(_: str, inputs: torch.Tensor) -> torch.Tensor:
        return round_inputs(inputs * factors) / factors

    before = {path: slots.read(module, path) for path in sharing.paths}
    spec = GridSpec(8, 0, symmetric=True, activations="dynamic")
    try:
        for path, weight in before.items():
            slots.write(module, path, fit_rows(weight / factors, spec, levels).rounded(weight / factors) * factors)
        with observing(module, sharing.paths, round_input):
            yield
    finally:
        for path, weight in before.items():
            slots.write(module, path, weight)


def round_inputs(values: torch.Tensor) -> torch.Tensor:
    """Return values of any shape at the nearest of 256 codes of their own range (DynamicQuantizeLinear)."""
    low, high = values.min().clamp(max=0.0), values.max().clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-30)
    zero = torch.round(-low / scale).clamp(0, 255)
    return ((torch.round(values / scale) + zero).clamp(0, 255) - zero) * scale


def worst(source: ModelFolder, losses: Sequence[torch.Tensor], share: float) -> set[str]:
    """Return the names of the modules whose groups lose most per weight, up to `share` of the blocks' weights."""
    from compressor.model.modules import base_prefix

    model = source.skeleton()
    prefix = f"{base_prefix(model)}{source.family.blocks}"
    groups = []
    for index, found in enumerate(losses):
        sharings = (*attention_sharings(source.family), *ffn_sharings(source.family))
        for sharing, loss in zip(sharings, found.tolist(), strict=True):
            names = [f"{prefix}.{index}.{path}" for path in sharing.paths]
            size = sum(slots.read(model, name).numel() for name in names)
            groups.append((loss / size, size, names))
    left = share * sum(size for _, size, _ in groups)
    kept: set[str] = set()
    for _, size, names in sorted(groups, key=lambda group: -group[0]):
        if size <= left:
            kept.update(names)
            left -= size
    return kept
