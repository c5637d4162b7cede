"""SmoothQuant: factors per input channel that even out an input whose range a few channels determine.

    W x = (W · diag(1/t)) (t ⊙ x),   t_j = max|W_:,j|^(1−a) / max|x_j|^a

([SmoothQuant](https://arxiv.org/abs/2211.10438), whose s is 1/t.) What is gained for the input is lost for the weight,
so `a` is searched per input for the least predicted error (`predicted_error`). Factors are powers of two: multiplying
by them is exact in floating point, and dequantised weights stay exact.

Where t goes: into the norm that makes the input; into the rows of the up projection of a gated feed-forward network, or
of the reader in front of a ReLU; elsewhere into the grid, whose scale becomes row scale · t_j, and the exported graph
multiplies the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import Sharing

if TYPE_CHECKING:
    import torch

    from compressor.architectures import Family
    from compressor.passes.quantize._int8.ranges import ChannelRanges
    from compressor.storage.grids import Grid
    from compressor.walk import BlockView
else:
    torch = lazy("torch")

ALPHAS = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
WORTHWHILE = 0.6
"""A product of its own must bring the predicted error below this share of what it was."""


@dataclass(frozen=True)
class Smoothing:
    """What was done to an input.

    Attributes:
        factors: t [inputs], powers of two.
        explicit: whether the graph must multiply the input by them; else they are folded into the block, or all 1.
    """

    factors: torch.Tensor
    explicit: bool = False


@dataclass(frozen=True)
class Error:
    """Predicted E‖W x − Ŵ x̂‖² of products that share an input.

    Attributes:
        inputs: from rounding the input: steps²/12 · ‖W/t‖².
        weights: from rounding the weight: Σ_i step_i²/12 · E‖t ⊙ x‖².
    """

    inputs: float
    weights: float

    @property
    def total(self) -> float:
        """Both."""
        return self.inputs + self.weights


def predicted_error(weight: torch.Tensor, ranges: ChannelRanges, factors: torch.Tensor, levels: int) -> Error:
    """Return the error of 8-bit codes for t ⊙ x and W/t, rounding errors taken as uniform over a step.

    Args:
        weight: W [outputs, inputs].
        ranges: of x.
        factors: t [inputs].
        levels: largest magnitude of a weight's code.
    """
    low, high = ranges.tensor_range(factors)
    scaled = weight / factors
    steps = ((high - low) / 255).double().square().mean() / 12
    rows = (scaled.abs().amax(1) / levels).double().square().sum() / 12
    energy = (ranges.mean_squares * factors.double().square()).sum()
    return Error(float(steps * scaled.double().square().sum()), float(rows * energy))


def find_factors(
    weight: torch.Tensor, ranges: ChannelRanges, levels: int, alphas: Sequence[float] = ALPHAS
) -> tuple[torch.Tensor, float]:
    """Return t [inputs], powers of two, and the predicted error over that without factors; ones where nothing helps."""
    x = torch.maximum(torch.stack(ranges.high).amax(0), -torch.stack(ranges.low).amin(0))
    w = weight.abs().amax(0)
    x, w = x.clamp(min=float(x.max()) * 1e-6 + 1e-30), w.clamp(min=float(w.max()) * 1e-6 + 1e-30)
    best = torch.ones_like(x)
    plain = least = predicted_error(weight, ranges, best, levels).total
    for alpha in alphas:
        exponents = (1 - alpha) * w.log2() - alpha * x.log2()
        factors = torch.exp2(torch.round(exponents - exponents.mean()))
        error = predicted_error(weight, ranges, factors, levels).total
        if error < least:
            best, least = factors, error
    return best, least / plain if plain > 0 else 1.0


def fold(block: BlockView, sharing: Sharing, factors: torch.Tensor) -> bool:
    """Fold `factors` into the module that produces a sharing's input; return whether there is such a module."""
    from compressor.model.modules import submodule

    if sharing.norm is not None:
        norm = submodule(block.module, sharing.norm)
        offset = block.family.norm_offset
        norm.weight.data = (norm.weight.data + offset) * factors - offset
        if getattr(norm, "bias", None) is not None:
            norm.bias.data = norm.bias.data * factors
        return True
    if sharing.name == "ffn_writer" and (slot := _row_slot(block)) is not None:
        _scale_rows(block, slot, factors)
        return True
    return False


def _row_slot(block: BlockView) -> str | None:
    """Return the path of the reader in whose output the writer's input is linear, channel by channel."""
    from compressor.model.modules import submodule

    ffn = block.family.ffn
    if any(slot.parts > 1 for slot in ffn.readers):
        return None
    if ffn.gated:
        return ffn.readers[1].path
    passes_scale = ffn.activation is not None and type(submodule(block.module, ffn.activation)).__name__ == "ReLU"
    return ffn.readers[0].path if passes_scale else None


def _scale_rows(block: BlockView, path: str, factors: torch.Tensor) -> None:
    bias = slots.read_bias(block.module, path)
    rows = slots.read(block.module, path) * factors[:, None]
    slots.write(block.module, path, rows, None if bias is None else bias * factors)
    grid = block.grids.get(path)
    if grid is not None:
        block.grids[path] = replace(grid, scale=grid.scale * factors[:, None])


def norm_before(family: Family, sharing: Sharing) -> str | None:
    """Return the path in the block of the norm that makes a sharing's input, whether or not factors fit into it."""
    if sharing.norm is None and sharing.name == "ffn" and family.residual == "post":
        return family.attention.norm
    return sharing.norm


def with_factors(grid: Grid, factors: torch.Tensor) -> Grid:
    """Return the grid of W when `grid` (one scale per row) is that of W/t: scale_ij = scale_i · t_j, groups of one."""
    return replace(grid, spec=replace(grid.spec, group_size=1), scale=grid.scale * factors[None, :])
