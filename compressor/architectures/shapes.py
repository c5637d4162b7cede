"""True shapes of a model, layer by layer, as config.json states them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from compressor.architectures.family import Family
from compressor.errors import ModelError


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
class Shapes:
    """Widths of a whole model.

    Attributes:
        hidden_size: width of the residual stream where there are no shortcuts.
        head_dim: width of one attention head.
        layers: one entry per block.
        shortcuts: whether blocks carry shortcut matrices.
        tied: whether the head shares the embedding matrix.
    """

    hidden_size: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    shortcuts: bool = False
    tied: bool = False

    @property
    def uniform(self) -> bool:
        """Whether every block has the same widths and none has shortcuts."""
        return not self.shortcuts and len(set(self.layers)) <= 1

    def with_widths(self, widths: list[int]) -> Shapes:
        """Return the same shapes with FFN widths `widths`, one per block."""
        layers = [replace(layer, intermediate_size=w) for layer, w in zip(self.layers, widths, strict=True)]
        return replace(self, layers=tuple(layers))

    def with_hidden(self, hidden: int) -> Shapes:
        """Return the same shapes with one residual width for the whole model."""
        layers = [replace(layer, residual=(hidden, hidden, hidden)) for layer in self.layers]
        return replace(self, hidden_size=hidden, layers=tuple(layers))


def read_shapes(config: Any, family: Family) -> Shapes:
    """Return the shapes stated by a transformers config and its `compression` section.

    Raises:
        ModelError: a width or a count is below one, or the section is of another version or does not fit the number of
            layers.
    """
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    count = _count(config, "num_hidden_layers")
    layer = LayerShape(
        intermediate_size=_count(config, family.width_key, 4 * hidden),
        num_attention_heads=heads,
        num_key_value_heads=_count(config, "num_key_value_heads", heads),
        residual=(hidden, hidden, hidden),
    )
    head_dim = _count(config, "head_dim", hidden // heads) if family.explicit_head_dim else hidden // heads
    tied = bool(getattr(config, "tie_word_embeddings", False)) and "lm_head" in family.heads
    shapes = Shapes(hidden, head_dim, (layer,) * count, tied=tied)
    section = getattr(config, "compression", None)
    return _apply_section(shapes, section) if section else shapes


def _count(config: Any, key: str, absent: int | None = None) -> int:
    """Return a width or a count that the config states, `absent` where it states none."""
    stated = getattr(config, key, None)
    given = absent if stated is None else stated
    if not isinstance(given, int) or given < 1:
        raise ModelError(
            f"config.json: {key} is {given!r}; allowed: whole numbers from 1",
            hint="Take config.json from the same place as the weights.",
        )
    return given


def _apply_section(shapes: Shapes, section: Any) -> Shapes:
    if not isinstance(section, dict) or section.get("version") != 1:
        raise ModelError(
            f"config.json: the compression section is not of version 1: {section!r:.120}",
            hint="The model was written by another version of compressor, or edited.",
        )
    try:
        layers = [
            LayerShape(**{**asdict(base), **layer, "residual": tuple(layer.get("residual", base.residual))})
            for base, layer in zip(shapes.layers, section["layers"], strict=True)
        ]
        hidden = int(section.get("hidden_size", shapes.hidden_size))
        return replace(shapes, hidden_size=hidden, layers=tuple(layers), shortcuts=bool(section.get("shortcuts")))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(
            f"config.json: the compression section does not describe the model's layers: {error}"
        ) from error


def shape_section(shapes: Shapes) -> dict[str, Any]:
    """Return the `compression` section that `read_shapes` reads back as `shapes`."""
    return {
        "version": 1,
        "hidden_size": shapes.hidden_size,
        "shortcuts": shapes.shortcuts,
        "layers": [{**asdict(layer), "residual": list(layer.residual)} for layer in shapes.layers],
    }
