"""Rotating the residual stream of a model without changing what it computes.

Pre-norm models may carry Pᵀ·x instead of x for an orthonormal P [d, d] (see `compressor.passes.numerics.rotation`):
readers become W·diag(norm scale)·P, writers Pᵀ·W. A P whose entries are all about equally large, as those of a
Hadamard matrix are, spreads every loud channel over all of them, and groups of weights come to have similar ranges.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.passes.numerics.rotation import Projection

if TYPE_CHECKING:
    import torch

    from compressor.model.folder import ModelFolder
    from compressor.walk.walk import BlockView, Walk
else:
    torch = lazy("torch")


def why_not(source: ModelFolder) -> str | None:
    """Return why the stream of a model cannot be rotated, None if it can be."""
    family = source.family
    if family.residual != "pre" or family.norm_offset or family.transposed or family.attention.layout != "separate":
        return f"family {family.name} has no separate projections behind plain pre-norms"
    if source.shapes.shortcuts:
        return "shortcut matrices change its stream from block to block"
    if source.shapes.tied:
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


def hadamard(order: int) -> torch.Tensor | None:
    """Return a Hadamard matrix [order, order] of ±1, float64, whose first column is all ones; None if none is found.

    Orders 2^a·(q + 1) are covered for q = 0 or a prime with q mod 4 = 3: Paley's construction, doubled as Sylvester
    did (Hedayat and Wallis, Annals of Statistics 6, 1978, sections 2 and 3).
    """
    doublings, base = 0, order
    while base > 1 and not _paley_prime(base - 1):
        if base % 2:
            return None
        doublings, base = doublings + 1, base // 2
    found = torch.ones(1, 1, dtype=torch.float64) if base == 1 else _paley(base - 1)
    for _ in range(doublings):
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found * found[:, :1]


def _paley_prime(q: int) -> bool:
    return q % 4 == 3 and all(q % divisor for divisor in range(3, math.isqrt(q) + 1, 2))


def _paley(q: int) -> torch.Tensor:
    """Return Paley's matrix I + S of order q + 1: S is skew, its core the quadratic characters of differences mod q."""
    squares = torch.full((q,), -1.0, dtype=torch.float64)
    squares[torch.arange(1, q).square() % q] = 1.0
    squares[0] = 0.0
    index = torch.arange(q)
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[1:, 1:] = squares[(index[:, None] - index) % q]
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    return skew + torch.eye(q + 1, dtype=torch.float64)


def random_rotation(width: int, seed: int, *, centre: bool) -> Projection:
    """Return a random change of coordinates of a stream of `width`, from a Hadamard matrix where there is one.

    With `centre` (LayerNorm) it takes the mean off the stream, which is then and stays without one, so that a stock
    LayerNorm behind it is exact.
    """
    generator = torch.Generator().manual_seed(seed)
    found = hadamard(width)
    if found is None:
        start = torch.randn(width, width, generator=generator, dtype=torch.float64)
        start[:, 0] = 1.0 if centre else start[:, 0]
        basis, upper = torch.linalg.qr(start)
        basis = basis * upper.diagonal().sign()
    else:
        basis = found[torch.randperm(width, generator=generator)] / math.sqrt(width)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1
    if centre:
        # The first column is the ones direction: it goes. Signs of rows would take the others out of its complement.
        return Projection.of(basis[:, 1:] * signs[1:], centre=True)
    return Projection.of(basis * signs[:, None], centre=False)


def rotate_block(block: BlockView, site: Projection) -> None:
    """Let a block read and write in the coordinates of `site`; norms' scales go into the readers."""
    from compressor.passes.structure._slice.block import set_readers

    attention, ffn = block.family.attention, block.family.ffn
    halves = ((attention.norm, attention.readers, attention.output), (ffn.norm, ffn.reader_paths, ffn.writer))
    for norm, readers, writer in halves:
        parts = [block.module.get_submodule(path) for path in readers]
        set_readers(block.module.get_submodule(norm), parts, site.matrix, site)
        _rotate_writer(block.module.get_submodule(writer), site)


def rotate_tail(walk: Walk, site: Projection) -> None:
    """Let the heads read in the coordinates of `site`."""
    from compressor.model.skeleton import base_of, optional_submodules
    from compressor.passes.structure._slice.block import set_readers

    norm = base_of(walk.model).get_submodule(str(walk.source.family.final_norm))
    set_readers(norm, optional_submodules(walk.model, walk.source.family.heads), site.matrix, site)


def _rotate_writer(module: Any, site: Projection) -> None:
    from compressor.model.skeleton import set_weight

    weight, bias = module.weight.data, module.bias
    rotated = site.writer(weight.flatten(1)).float().reshape(weight.shape)
    set_weight(module, rotated, None if bias is None else site.stream(bias.data.double()).float())
