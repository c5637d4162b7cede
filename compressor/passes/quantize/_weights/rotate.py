"""Rotating the residual stream of a model without changing what it computes.

Pre-norm models may carry Pᵀ·x instead of x for an orthonormal P [d, d] (see `compressor.passes.numerics.rotation`):
readers become W·diag(norm scale)·P, writers Pᵀ·W. A P whose entries are all about equally large, as those of a
Hadamard matrix are, spreads every loud channel over all of them, and groups of weights come to have similar ranges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.errors import ModelError
from compressor.passes.surgery.stream import rotatable

if TYPE_CHECKING:
    from compressor.model.folder import ModelFolder


def why_not(source: ModelFolder) -> str | None:
    """Return why the stream of a model cannot be rotated, None if it can be."""
    family = source.family
    if not rotatable(source):
        return f"family {family.name} for {source.task} has no separate projections behind plain pre-norms and a head"
    if source.shapes.shortcuts:
        return "shortcut matrices change its stream from block to block"
    if source.blueprint.tied:
        return "its head is tied to the embedding and cannot take in the scale of the final norm"
    return None


def check_rotatable(method: str, source: ModelFolder) -> None:
    """Raise ModelError where the stream of a model cannot be rotated."""
    if reason := why_not(source):
        raise ModelError(
            f"{method}: rotate: true asks for a rotation of the residual stream, but this {source.family.name} model "
            f"allows none: {reason}",
            hint="Set rotate: auto, which leaves such models as they are.",
        )
