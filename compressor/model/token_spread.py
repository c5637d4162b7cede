"""Selections that look at more than one score per token: rows, neighbours, distances, anchors; counts are static."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compressor.model.token_select import Choice, gathered, lowest, others

_FAR = 4.0
"""Above any cosine distance."""


def most_distant(features: Tensor, keep: int, protect: int, scores: Tensor | None = None) -> Tensor:
    """Return the places of tokens that are far from each other, by rising place: [batch, keep].

    DivPrune (arXiv 2503.02175): greedily, the largest least distance, 1 − cosine. The first token is the
    one whose nearest other token is farthest; each next one has the farthest nearest token among those chosen.

    Args:
        features: [batch, tokens, width].
        keep: how many in all, those that are protected among them.
        protect: how many tokens at the start are kept and are not looked at.
        scores: [batch, tokens]; where they are given, the first token is the one of the highest, as in ToDRE's
            greedy k-centre (arXiv 2505.18757).
    """
    chosen = [least.argmax(-1) for least in _least_distances(features, keep, protect, scores)]
    first = torch.arange(protect, device=features.device).expand(features.shape[0], -1)
    return torch.cat([first, torch.stack(chosen, dim=1).sort(dim=-1).values + protect], dim=1)


def distance_gaps(features: Tensor, keep: int, protect: int, scores: Tensor | None = None) -> Tensor:
    """Return by how much a chosen token led the next one, where that was least: [batch]; arguments as above."""
    gaps, scores = [], None if scores is None else scores / scores.abs().amax(-1, keepdim=True)
    for least in _least_distances(features, keep, protect, scores):
        best = least.topk(2, dim=-1).values
        gaps.append(best[:, 0] - best[:, 1])
    return torch.stack(gaps).amin(0)


def _least_distances(features: Tensor, keep: int, protect: int, scores: Tensor | None) -> Iterator[Tensor]:
    """Yield [batch, patches] for each token to be chosen: the highest is the one."""
    patches, count = features[:, protect:], keep - protect
    unit = patches / patches.norm(dim=-1, keepdim=True)
    batch, tokens = unit.shape[:2]
    places = torch.arange(tokens, device=unit.device)
    itself = places.unsqueeze(1) == places
    distances = 1 - unit @ unit.transpose(1, 2)
    least = torch.where(itself, _FAR, distances).amin(-1) if scores is None else scores[:, protect:]
    yield least
    distances = torch.where(itself, -_FAR, distances)  # a chosen token is never chosen again
    flat, starts = distances.reshape(-1, tokens), torch.arange(batch, device=unit.device) * tokens
    nearest = flat.index_select(0, least.argmax(-1) + starts)
    for number in range(1, count):
        yield nearest
        if number + 1 < count:
            nearest = torch.minimum(nearest, flat.index_select(0, nearest.argmax(-1) + starts))


def best_rows(scores: Tensor, keep: int, protect: int, columns: int) -> Tensor:
    """Return the places of the tokens of those rows of patches whose scores have the highest sums: [batch, keep].

    FoPru's row strategy (arXiv 2411.14164).

    Args:
        scores: [batch, tokens].
        keep: protected tokens and whole rows.
        protect: how many tokens at the start are kept and belong to no row.
        columns: patches in a row.
    """
    batch = scores.shape[0]
    sums = scores[:, protect:].reshape(batch, -1, columns).sum(-1)
    rows = sums.topk((keep - protect) // columns, dim=-1).indices.sort(dim=-1).values
    patches = rows.unsqueeze(2) * columns + torch.arange(columns, device=scores.device) + protect
    first = torch.arange(protect, device=scores.device).expand(batch, -1)
    return torch.cat([first, patches.reshape(batch, -1)], dim=1)


def with_neighbours(scores: Tensor, marks: Tensor, anchors: int, protect: int, columns: int) -> Tensor:
    """Return scores [batch, tokens] in [0, 1], raised by 2 at anchors and at what touches them above, below and beside.

    HiPrune (arXiv 2508.00553): anchors and their neighbours go on before all others. Neighbours do not wrap around.

    Args:
        scores: of a deep block, [batch, tokens].
        marks: of a middle block, [batch, tokens]; the highest are anchors.
        anchors: how many.
        protect: how many tokens at the start are no patches.
        columns: patches in a row.
    """
    batch, tokens = scores.shape
    patches = marks[:, protect:]
    best = patches.topk(anchors, dim=-1).indices  # [batch, anchors]
    places = torch.arange(tokens - protect, device=scores.device)
    rows, across = places // columns, places % columns
    apart = (rows - (best // columns).unsqueeze(2)).abs() + (across - (best % columns).unsqueeze(2)).abs()
    near = (apart <= 1).any(1)  # [batch, patches]
    return torch.cat([scores[:, :protect], torch.where(near, scores[:, protect:] + 2, scores[:, protect:])], dim=1)


def with_anchors(scores: Tensor, features: Tensor, keep: int, anchors: int, protect: int) -> Choice:
    """Let the highest scores go on as they are, and the others join the nearest of evenly spaced ones among them.

    VisionZip (arXiv 2412.04467): dominant tokens, and contextual tokens that the rest is merged into, by
    the cosine of their features.

    Args:
        scores: [batch, tokens].
        features: [batch, tokens, width].
        keep: how many go on in all.
        anchors: how many of these others are merged into.
        protect: how many tokens at the start go on and take none up.
    """
    tokens = scores.shape[1]
    rest = lowest(scores, tokens - keep + anchors, protect)
    step = max(rest.shape[1] // anchors, 1)
    at = [i * step for i in range(anchors)]
    centres, gone = rest[:, at], rest[:, [i for i in range(rest.shape[1]) if i not in at]]
    kept = torch.cat([others(rest, keep - anchors), centres], dim=1).sort(dim=-1).values
    unit = features / features.norm(dim=-1, keepdim=True)
    nearest = (gathered(unit, gone) @ gathered(unit, centres).transpose(1, 2)).argmax(-1)
    target = centres.gather(1, nearest)
    return Choice(kept, gone, into=(kept.unsqueeze(1) < target.unsqueeze(2)).sum(-1))
