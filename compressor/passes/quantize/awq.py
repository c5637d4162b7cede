"""AWQ: activation-aware scales, a clip search, then rounding to the nearest (arXiv 2306.00978).

Weights of loud inputs matter most, so the columns of W that they meet are made larger by s, and the inputs smaller by
as much. The division goes into what makes the input:

    q, k, v; gate, up    the norm before them
    o                    the rows of v; query heads that share a value head share s
    down                 the rows of up; in a plain FFN the rows of the reader, where the activation is a ReLU

    s = (E|x|)^α / √(max · min),   α out of 0 … 1 with the least Σ E‖(Ŵs⁻¹ − W)x‖²,  Ŵ = W·s on its grid

No norm stands before the readers of a post-norm family, and GELU lets no scale through: there weights are only clipped
and rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor._lazy import lazy
from compressor.passes.base import Options
from compressor.passes.quantize._weights.weight_only import WeightOnly, WeightOnlyOptions
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import Sharing, attention_sharings, ffn_sharings

if TYPE_CHECKING:
    import torch

    from compressor.passes.numerics.moments import InputStats
    from compressor.storage.grids import Grid, GridSpec
    from compressor.walk import BlockView
else:
    torch = lazy("torch")


class AwqOptions(WeightOnlyOptions):
    """Options of `awq`."""

    steps: int = Field(20, ge=0, le=100, description="How many values of α are tried besides 0; 0 scales nothing.")
    clip: Literal["none", "mse"] = Field(
        "mse", description="mse: each group's grid covers the part of its range that rounds with the least error."
    )


class Awq(WeightOnly):
    """See the module."""

    name: str = "awq"
    summary: ClassVar[str] = "Scale up the weights of loud inputs, clip, round to the nearest (AWQ)."
    Options: ClassVar[type[Options]] = AwqOptions

    def quantize(self, weight: torch.Tensor, spec: GridSpec, stats: InputStats | None) -> tuple[Grid, torch.Tensor]:
        """Round a weight [outputs, inputs]."""
        from compressor.passes.numerics.rounding import clipped_grid
        from compressor.storage.grids import fit_grid

        assert stats is not None
        clips = self.options.clip == "mse"
        grid = clipped_grid(weight, spec, stats.gram.diagonal()) if clips else fit_grid(weight, spec)
        return grid, grid.rounded(weight)

    def prepare_block(self, block: BlockView) -> None:
        """Fold scales into a block, found on the inputs that it gets."""
        from compressor.passes.quantize._weights.sharings import collect

        sharings = (*attention_sharings(block.family), *ffn_sharings(block.family))
        folds = [(s, maker) for s in sharings if (maker := maker_of(block, s))] if self.options.steps else []
        if not folds:
            return

        def run(k: int) -> None:
            block.forward(block.module, block.current_in(k), k)

        stats = collect(
            block,
            [sharing for sharing, _ in folds],
            run,
            group=self.options.group_size,
            weights=self.token_weights,
        )
        for sharing, maker in folds:
            scale = self._scale(block, sharing, stats[sharing.name])
            if scale is not None:
                fold(block, sharing, maker, scale)
        block.seal()

    def _scale(self, block: BlockView, sharing: Sharing, stats: InputStats) -> torch.Tensor | None:
        """Return the scale [width] of a sharing's input that loses least, None for none at all."""
        from compressor.storage.grids import fit_grid

        specs = [(path, self._specs.get(block.name_of(path))) for path in sharing.paths]
        weights = [(slots.read(block.module, path), spec) for path, spec in specs if spec is not None]
        gram, loudness = stats.gram.float(), shared_loudness(block, sharing, stats.mean_abs.float())

        def lost(scale: torch.Tensor | None) -> float:
            total = 0.0
            for weight, spec in weights:
                scaled = weight if scale is None else weight * scale
                values = fit_grid(scaled, spec).rounded(scaled)
                error = (values if scale is None else values / scale) - weight
                total += float(((error @ gram) * error).sum())
            return total

        best, least = None, lost(None)
        for step in range(1, self.options.steps + 1):
            scale = loudness.clamp(min=1e-4) ** (step / self.options.steps)
            scale = scale / (scale.max() * scale.min()).sqrt()
            if (error := lost(scale)) < least:
                best, least = scale, error
        return best


def maker_of(block: BlockView, sharing: Sharing) -> str | None:
    """Return the path of the module (the maker) whose outputs can be divided to divide a sharing's input, or None.

    With grouped queries, attention's writer reads each channel of its maker several times.
    """
    family = block.family
    ffn = family.ffn
    if sharing.norm is not None:
        return None if family.norm_offset else sharing.norm
    if sharing.name == "attention_output" and family.attention.layout == "separate":
        return family.attention.value.path
    if sharing.name == "ffn_writer" and all(slot.parts == 1 for slot in ffn.readers):
        activation = None if ffn.activation is None else block.module.get_submodule(ffn.activation)
        if ffn.gated or isinstance(activation, torch.nn.ReLU):
            return ffn.readers[-1].path
    return None


def _repeats(block: BlockView, sharing: Sharing) -> int:
    """Return how many query heads share a value head, where the input is that of attention's writer; else 1."""
    heads, groups = block.layer.num_attention_heads, block.layer.num_key_value_heads
    return heads // groups if sharing.name == "attention_output" else 1


def _by_maker(values: torch.Tensor, block: BlockView, sharing: Sharing) -> torch.Tensor:
    """Return values [width] of an input's channels as [groups, repeats, channels of a head]."""
    repeats = _repeats(block, sharing)
    size = block.head_dim if repeats > 1 else len(values)
    return values.reshape(-1, repeats, size)


def shared_loudness(block: BlockView, sharing: Sharing, loudness: torch.Tensor) -> torch.Tensor:
    """Return E|x| [width] averaged over the channels that come from one channel of the maker."""
    parts = _by_maker(loudness, block, sharing)
    return parts.mean(1, keepdim=True).expand_as(parts).reshape(-1)


def fold(block: BlockView, sharing: Sharing, maker: str, scale: torch.Tensor) -> None:
    """Multiply the columns of a sharing's weights by `scale` [width], and divide the outputs of its maker by it."""
    from compressor.model.modules import submodule

    for path in sharing.paths:
        slots.write(block.module, path, slots.read(block.module, path) * scale)
    own = _by_maker(scale, block, sharing)[:, 0].reshape(-1)
    if maker == sharing.norm:
        norm: Any = submodule(block.module, maker)
        norm.weight.data = norm.weight.data / own
        if getattr(norm, "bias", None) is not None:
            norm.bias.data = norm.bias.data / own
        return
    bias = slots.read_bias(block.module, maker)
    rows = slots.read(block.module, maker) / own[:, None]
    slots.write(block.module, maker, rows, None if bias is None else bias / own)


METHOD = Awq
