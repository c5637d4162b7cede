"""A selection that keeps the highest scores and makes clusters of the others: pure functions; counts are static."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.model.token_select import Choice, gathered, lowest, others

_NEIGHBOURS = 5


def with_clusters(scores: Tensor, features: Tensor, keep: int, clusters: int, protect: int) -> Choice:
    """Let the highest scores go on as they are, and the others join the centre of their cluster.

    Recoverable compression (arXiv 2409.01179): centres are density peaks among the others (`density_peaks`), which each
    of the rest joins by the cosine of their features.

    Args:
        scores: [batch, tokens].
        features: [batch, tokens, width].
        keep: how many go on in all.
        clusters: how many of these are centres.
        protect: how many tokens at the start go on and take none up.
    """
    rest = lowest(scores, scores.shape[1] - keep + clusters, protect)
    unit = features / features.norm(dim=-1, keepdim=True)
    peaks = density_peaks(gathered(unit, rest))
    at = peaks.topk(clusters, dim=-1).indices.sort(dim=-1).values
    outside = others(at, rest.shape[1] - clusters)
    centres, gone = rest.gather(1, at), rest.gather(1, outside)
    kept = torch.cat([others(rest, keep - clusters), centres], dim=1).sort(dim=-1).values
    nearest = (gathered(unit, gone) @ gathered(unit, centres).transpose(1, 2)).argmax(-1)
    target = centres.gather(1, nearest)
    return Choice(kept, gone, into=(kept.unsqueeze(1) < target.unsqueeze(2)).sum(-1))


def density_peaks(unit: Tensor) -> Tensor:
    """Return density times distance to the nearest denser token: high for centres of clusters, [batch, tokens].

    Args:
        unit: features of length 1, [batch, tokens, width].
    """
    distances, density = distances_and_density(unit)
    places = torch.arange(density.shape[1], device=density.device)
    mine, theirs = density.unsqueeze(2), density.unsqueeze(1)
    denser = (theirs > mine) | ((theirs == mine) & (places < places.unsqueeze(1)))
    farthest = distances.amax((1, 2), keepdim=True)
    return density * torch.where(denser, distances, farthest).amin(-1)


def distances_and_density(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances between tokens [batch, tokens, tokens] and how dense it is around each [batch, tokens].

    The density is exp(−mean squared distance to the nearest tokens).
    """
    squared = (2 - 2 * unit @ unit.transpose(1, 2)).clamp(min=0)
    count = unit.shape[1]
    itself = torch.eye(count, dtype=torch.bool, device=unit.device)
    squared = torch.where(itself, 0.0, squared)
    near = torch.where(itself, 8.0, squared).topk(min(_NEIGHBOURS, count - 1), dim=-1, largest=False).values
    return squared.sqrt(), (-near.mean(-1)).exp()
