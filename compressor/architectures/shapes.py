"""True shapes of a stack of blocks, layer by layer, as config.json states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from compressor.architectures.family import Family
from compressor.errors import ModelError, brief


@dataclass(frozen=True)
class LayerShape:
    """Widths of one block.

    Attributes:
        intermediate_size: FFN channels.
        num_attention_heads: query heads.
        num_key_value_heads: key-value heads.
        residual: widths of the residual stream at the attention input, the FFN input and the block output; they differ
            from each other only where shortcut matrices carry the stream from one width to the next.
    """

    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    residual: tuple[int, int, int]


@dataclass(frozen=True)
class StackShapes:
    """Widths of one stack: a tower of blocks with what stands before and behind them.

    Attributes:
        hidden_size: width of the residual stream where there are no shortcuts.
        head_dim: width of one attention head.
        layers: one entry per block.
        shortcuts: whether blocks carry shortcut matrices.
    """

    hidden_size: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    shortcuts: bool = False

    @property
    def uniform(self) -> bool:
        """Whether every block has the same widths and none has shortcuts."""
        return not self.shortcuts and len(set(self.layers)) <= 1

    def with_widths(self, widths: list[int]) -> StackShapes:
        """Return the same shapes with FFN widths `widths`, one per block."""
        layers = [replace(layer, intermediate_size=w) for layer, w in zip(self.layers, widths, strict=True)]
        return replace(self, layers=tuple(layers))

    def with_hidden(self, hidden: int) -> StackShapes:
        """Return the same shapes with one residual width for the whole stack."""
        layers = [replace(layer, residual=(hidden, hidden, hidden)) for layer in self.layers]
        return replace(self, hidden_size=hidden, layers=tuple(layers))


def stock_shapes(config: Any, family: Family) -> StackShapes:
    """Return the shapes that a transformers config states by its own keys: the same for every block.

    Raises:
        ModelError: a width or a count is below one, or heads do not divide what they share.
    """
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    count = _count(config, "num_hidden_layers")
    layer = LayerShape(
        intermediate_size=_ffn_width(config, family, hidden),
        num_attention_heads=heads,
        num_key_value_heads=_count(config, "num_key_value_heads", heads),
        residual=(hidden, hidden, hidden),
    )
    stated = getattr(config, "head_dim", None) if family.explicit_head_dim else None
    if stated is None and hidden % heads:
        raise _uneven("hidden_size", hidden, "num_attention_heads", heads)
    if heads % layer.num_key_value_heads:
        raise _uneven("num_attention_heads", heads, "num_key_value_heads", layer.num_key_value_heads)
    head_dim = _count(config, "head_dim") if stated is not None else hidden // heads
    return StackShapes(hidden, head_dim, (layer,) * count)


def _ffn_width(config: Any, family: Family, hidden: int) -> int:
    if family.ffn_width is None:
        return _count(config, family.width_key, 4 * hidden)
    if family.ffn_width < 1:
        raise ModelError(
            f"config.json: hidden_size and mlp_ratio make an FFN of {family.ffn_width} channels; allowed: one or more",
            hint="Take config.json from the same place as the weights.",
        )
    return family.ffn_width


def _uneven(key: str, value: int, divisor: str, count: int) -> ModelError:
    return ModelError(
        f"config.json: {key} is {value}, which {divisor}, {count}, does not divide",
        hint="Take config.json from the same place as the weights.",
    )


def _count(config: Any, key: str, absent: int | None = None) -> int:
    """Return a width or a count that the config states, `absent` where it states none."""
    stated = getattr(config, key, None)
    given = absent if stated is None else stated
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ModelError(
            f"config.json: {key} is {brief(given)}; allowed: whole numbers from 1",
            hint="Take config.json from the same place as the weights.",
        )
    return given


def shapes_in(section: Mapping[str, Any], stock: StackShapes) -> StackShapes:
    """Return the shapes that a stack's part of config.json's `compression` section states; `stock` says what it omits.

    Raises:
        TypeError, ValueError, KeyError: the section does not describe a stack of that many blocks.
    """
    layers = [
        LayerShape(**{**asdict(base), **layer, "residual": tuple(layer.get("residual", base.residual))})
        for base, layer in zip(stock.layers, section["layers"], strict=True)
    ]
    hidden = int(section.get("hidden_size", stock.hidden_size))
    return replace(stock, hidden_size=hidden, layers=tuple(layers), shortcuts=bool(section.get("shortcuts")))


def shapes_section(shapes: StackShapes) -> dict[str, Any]:
    """Return what `shapes_in` reads back as `shapes`."""
    return {
        "hidden_size": shapes.hidden_size,
        "shortcuts": shapes.shortcuts,
        "layers": [{**asdict(layer), "residual": list(layer.residual)} for layer in shapes.layers],
    }
