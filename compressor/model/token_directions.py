"""A selection that takes tokens of every principal direction of an image: pure functions; counts are static."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.model.token_regions import best_in_groups, budgets, shared_out
from compressor.model.token_scores import hashed_features

_ROUNDS = 3
_TINY = 1e-12
_FIRST = 2.0
"""Above any loading: what those are raised by that no other one of their group stands for."""


@dataclass(frozen=True)
class Directions:
    """What is known of the tokens of a batch and of their principal directions.

    Attributes:
        loadings: how much each token has of each direction, [batch, tokens, directions], without signs.
        nearest: the highest cosine to a token of the same group that has more of its direction, [batch, tokens].
        threshold: from which cosine on that one stands for it, [batch, 1].
        inside: which group each is in, as 0 and 1, [batch, tokens, directions].
    """

    loadings: Tensor
    nearest: Tensor
    threshold: Tensor
    inside: Tensor

    @property
    def scores(self) -> Tensor:
        """How much of its group's direction each token has, raised where no other stands for it, [batch, tokens]."""
        alone = (self.nearest < self.threshold).to(self.loadings.dtype)
        return self.loadings.amax(-1) + _FIRST * alone

    def allowed(self, keep: int) -> Tensor:
        """Return how many of each group go on, `keep` in all, [batch, directions]: by how many it has."""
        sizes = self.inside.sum(1)
        return budgets(shared_out(sizes, sizes, keep), keep)


def directions_of(features: Tensor, count: int) -> Directions:
    """Return the principal directions of tokens [batch, tokens, width], and what they say of each token."""
    loadings = principal_directions(features, count).abs()
    groups = loadings.argmax(-1)
    inside = (groups.unsqueeze(2) == torch.arange(count, device=groups.device)).to(features.dtype)
    unit = features / features.norm(dim=-1, keepdim=True)
    cosines, tokens = unit @ unit.transpose(1, 2), features.shape[1]
    mean = (cosines.sum((1, 2)) - tokens) / (tokens * (tokens - 1))
    own = loadings.amax(-1)
    above = (own.unsqueeze(1) > own.unsqueeze(2)) & (groups.unsqueeze(1) == groups.unsqueeze(2))
    nearest = torch.where(above, cosines, -_FIRST).amax(-1)
    return Directions(loadings, nearest, (1 + mean.unsqueeze(1)) / 2, inside)


def best_of_directions(features: Tensor, count: int, keep: int) -> Tensor:
    """Return the places of tokens of every principal direction, by rising place: [batch, keep].

    PruneSID (arXiv 2603.09480): each token is of the group of the direction that it has most of. Of each group as many
    go on as its share of all; first those that are not alike to one that has more of the direction, each kind from
    those that have most of it on.

    Args:
        features: [batch, tokens, width].
        count: directions.
        keep: how many go on.
    """
    found = directions_of(features, count)
    return best_in_groups(found.scores, found.inside, found.allowed(keep), keep)


def principal_directions(features: Tensor, count: int) -> Tensor:
    """Return the first principal directions of tokens [batch, tokens, width]: [batch, tokens, directions], orthonormal.

    By a few rounds of orthogonal iteration from fixed numbers, as ONNX has no operator for a decomposition.
    """
    centred = features - features.mean(1, keepdim=True)
    centred = centred / centred.square().sum((1, 2), keepdim=True).sqrt().clamp(min=_TINY)
    found = hashed_features(features, count)
    for _ in range(_ROUNDS):
        found = _orthonormal(centred @ (centred.transpose(1, 2) @ found))
    return found


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of columns [batch, tokens, n], one after the other (Gram-Schmidt, twice)."""
    basis = _unit(columns[..., :1])
    for place in range(1, columns.shape[-1]):
        column = _unit(columns[..., place : place + 1])
        for _ in range(2):
            column = column - basis @ (basis.transpose(1, 2) @ column)
        basis = torch.cat([basis, _unit(column)], dim=-1)
    return basis


def _unit(column: Tensor) -> Tensor:
    return torch.as_tensor(column / column.norm(dim=1, keepdim=True).clamp(min=_TINY))
