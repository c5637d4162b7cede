"""How narrow a sliced model is: widths that remove a given share of all its parameters, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from compressor.architectures import StackShapes
from compressor.errors import ModelError

if TYPE_CHECKING:
    from compressor.model.folder import ModelFolder


def sliced_shapes(source: ModelFolder, reduction: float, *, multiple: int, ffn: bool, shortcuts: bool) -> StackShapes:
    """Return shapes of which at least `reduction` of all parameters is gone, embeddings and shortcuts counted.

    Args:
        source: the model before.
        reduction: share of all parameters to remove, in (0, 1).
        multiple: widths that change become multiples of it. Where stock transformers will load the result, the hidden
            size is a multiple of the number of heads, too: its configs demand that.
        ffn: whether FFN channels share the cut. 2·reduction³ of them go, at most `reduction`: a small cut comes from
            the hidden size nearly alone, a deep one from both (measured; see docs/methods/slicegpt.md). They also take
            up what is between two multiples of the hidden size.
        shortcuts: whether two shortcut matrices per block are added.

    Raises:
        ModelError: no width removes so much.
    """
    shapes = source.shapes

    count = parameter_count(source)
    base = replace(shapes, shortcuts=shortcuts)
    allowed = int(count(shapes) * (1 - reduction))
    step = _hidden_step(source, multiple, shortcuts)
    candidates = range(step, shapes.hidden_size + 1, step)

    def fits(hidden: int, keep: float) -> bool:
        return count(_at(base, hidden, keep, multiple)) <= allowed

    if not candidates or not fits(candidates[0], 0.0 if ffn else 1.0):
        raise ModelError(
            f"reduction {reduction:g}: hidden size {step} keeps more than {1 - reduction:.0%} of all parameters",
            hint="Lower reduction or round_to, or choose rotation: shared, which needs no shortcut matrices.",
        )
    if not ffn:
        found = _at(base, _last(candidates, lambda hidden: fits(hidden, 1.0)), 1.0, multiple)
    else:
        wanted = 1 - min(reduction, 2 * reduction**3)
        below = _last(candidates, lambda hidden: fits(hidden, wanted), default=candidates[0])
        # One multiple more, where more channels than planned make up for it: between the two the nearer one is taken.
        above = below + step
        room = allowed - count(_at(base, below, wanted, multiple))
        excess = count(_at(base, above, wanted, multiple)) - allowed if above in candidates else room + 1
        hidden = above if excess <= room and fits(above, 0.0) else below
        if hidden == below and above in candidates and fits(below, 1.0) and fits(above, 0.0):
            hidden = above
        keeps = range(1, 1001)
        found = _at(base, hidden, _last(keeps, lambda keep: fits(hidden, keep / 1000), default=0) / 1000, multiple)
    return found


def parameter_count(source: ModelFolder) -> Callable[[StackShapes], int]:
    """Return what counts the parameters of `source` with another hidden size h and other FFN widths.

    No matrix has h on both sides, nor a channel, so without shortcuts the count is α + β·h + γ·c + δ·h·c with c the
    channels of all blocks together: four skeletons settle it, however many candidates there are. Shortcuts are h² each.
    """
    shapes = source.shapes
    start, step = shapes.hidden_size, shapes.layers[0].num_attention_heads
    widths = [layer.intermediate_size for layer in shapes.layers]

    def exact(hidden: int, more: int) -> int:
        changed = shapes.with_hidden(hidden).with_widths([width + more for width in widths])
        return source.with_blueprint(source.blueprint.with_shapes(changed)).parameters

    corner = source.parameters
    by_hidden, by_channels = exact(start + step, 0) - corner, exact(start, 1) - corner
    by_both = exact(start + step, 1) - corner - by_hidden - by_channels

    def count(candidate: StackShapes) -> int:
        hidden = candidate.hidden_size - start
        channels = sum(layer.intermediate_size for layer in candidate.layers) - sum(widths)
        # `by_both` and `by_hidden` belong to `step` of h, `by_both` and `by_channels` to one channel in every block.
        grown = hidden * (by_hidden * len(widths) + by_both * channels) + by_channels * channels * step
        squares = 2 * len(widths) * candidate.hidden_size**2 if candidate.shortcuts else 0
        return corner + grown // (step * len(widths)) + squares

    return count


def _hidden_step(source: ModelFolder, multiple: int, shortcuts: bool) -> int:
    """Return what the hidden size is a multiple of; of the heads alone where both together leave too few choices."""
    shapes = source.shapes
    heads = shapes.layers[0].num_attention_heads
    if shortcuts or not shapes.uniform or not source.family.explicit_head_dim:
        return multiple
    both = math.lcm(multiple, heads)
    return both if both <= shapes.hidden_size // 8 else heads


def _at(base: StackShapes, hidden: int, keep: float, multiple: int) -> StackShapes:
    """Return shapes of a hidden size and a share of every block's FFN channels, rounded down, one multiple at least."""

    def width(before: int) -> int:
        return before if keep >= 1 else max(min(before, multiple), int(before * keep) // multiple * multiple)

    return base.with_hidden(hidden).with_widths([width(layer.intermediate_size) for layer in base.layers])


def _last(values: range, holds: Callable[[int], bool], default: int | None = None) -> int:
    """Return the last of ascending `values` for which `holds` is true, which it is up to some point (bisection)."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if holds(values[middle]) else (low, middle)
    if low == 0 and default is not None:
        return default
    return values[low - 1]
