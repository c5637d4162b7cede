"""Selections that give every region of the image a budget of its own: pure functions; counts are static.

Regions are the fields of a square grid over the patches. A budget is a share of all tokens that go on, rounded so that
the budgets of all regions sum up to exactly these; what a region has no room for is handed on to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from compressor.model.blueprint import Reduction
from compressor.model.token_scores import JOINS, SCORES, Seen, cls_attn, mean_key

_VARIETY = 0.09
"""What HoloV weighs the variance of cosines by, beside attention."""
_LEAST = 1e-6
"""Of all weights: what a region counts at least, so that it can take up what others have no room for."""


@dataclass(frozen=True)
class Regions:
    """What budgets are made of, for the patches of a batch.

    Attributes:
        scores: how much each patch matters, [batch, patches].
        guide: how much attention the class token pays to each, in the block that budgets are read from, [batch,
            patches].
        inside: which region each is in, as 0 and 1, [patches, regions].
        keys: attention keys, averaged over heads, [batch, patches, head width].
        reduction: says how many regions there are, and how budgets are made.
    """

    scores: Tensor
    guide: Tensor
    inside: Tensor
    keys: Tensor
    reduction: Reduction

    @property
    def rooms(self) -> Tensor:
        """How many patches each region has, [regions]."""
        return self.inside.sum(0)


def region_labels(patches: int, columns: int, regions: int) -> Tensor:
    """Return the region of each patch, [patches].

    Args:
        patches: row by row.
        columns: patches side by side.
        regions: a square number; its root is at most the rows, and at most the columns.
    """
    side, rows = isqrt(regions), patches // columns
    places = torch.arange(patches)
    return places // columns * side // rows * side + places % columns * side // columns


def by_attention(parts: Regions) -> Tensor:
    """Return weights [batch, regions]: the class token's attention to each region (HiRED, arXiv 2408.10945)."""
    return parts.guide @ parts.inside


def by_guidance(parts: Regions) -> Tensor:
    """Return weights [batch, regions]: equal ones, moved a little by the attention that the class token pays to each.

    GlobalCom² (arXiv 2501.05179): a region keeps R·(1 + σ − 1/n) of its patches, where σ is a softmax over the n
    regions of attention over a temperature.
    """
    shares = (parts.guide @ parts.inside / parts.reduction.temperature).softmax(-1)
    return parts.rooms * (1 + shares - 1 / parts.reduction.regions)


def by_context(parts: Regions) -> Tensor:
    """Return weights [batch, regions]: a softmax of the sums of their scores (HoloV, arXiv 2510.02912)."""
    return (parts.scores @ parts.inside / parts.reduction.temperature).softmax(-1)


def by_density(parts: Regions) -> Tensor:
    """Return weights [batch, regions]: patches times how few of the pairs among them are alike.

    Token-level correlation (arXiv 2407.14439): two patches are alike if the cosine of their keys is at least a
    threshold.
    """
    unit = parts.keys / parts.keys.norm(dim=-1, keepdim=True)
    alike = (unit @ unit.transpose(1, 2) >= parts.reduction.alike).to(unit.dtype)
    others = _together(parts.inside)
    pairs = ((alike * others).sum(-1) @ parts.inside) / (others.sum(-1) @ parts.inside).clamp(min=1)
    return torch.as_tensor(parts.rooms * (1 - pairs))


QUOTAS: Mapping[str, Callable[[Regions], Tensor]] = {
    "attention": by_attention,
    "guided": by_guidance,
    "context": by_context,
    "density": by_density,
}
"""Names of what budgets come from, as recipes and config.json write them."""


def variety(hidden: Tensor, inside: Tensor) -> Tensor:
    """Return the variance of each patch's cosines to the others of its region, [batch, patches]; 0 where it is alone.

    Args:
        hidden: [batch, patches, width].
        inside: as in `Regions`.
    """
    unit, others = hidden / hidden.norm(dim=-1, keepdim=True), _together(inside)
    cosines, count = unit @ unit.transpose(1, 2), others.sum(-1).clamp(min=1)
    mean = (cosines * others).sum(-1, keepdim=True) / count.unsqueeze(-1)
    return torch.as_tensor(((cosines - mean).square() * others).sum(-1) / count)


def _together(inside: Tensor) -> Tensor:
    """Return 1 where two patches are of one region and not the same, 0 elsewhere: [patches, patches]."""
    places = torch.arange(inside.shape[0], device=inside.device)
    return torch.where(places.unsqueeze(1) == places, 0.0, inside @ inside.transpose(0, 1))


def shared_out(weights: Tensor, rooms: Tensor, total: int) -> Tensor:
    """Return what each region gets of `total`, in fractions: by its weight, and never more than it has room for.

    Args:
        weights: [batch, regions].
        rooms: [regions] or [batch, regions]; together at least `total`.
        total: of all regions.

    Returns:
        [batch, regions].
    """
    weights = torch.maximum(weights, _LEAST * weights.sum(-1, keepdim=True))
    given = torch.zeros_like(weights)
    for _ in range(weights.shape[1]):  # each round fills up a region at least, or hands everything out
        free = torch.where(given < rooms, weights, 0.0)
        left = total - given.sum(-1, keepdim=True)
        given = torch.minimum(given + left * free / free.sum(-1, keepdim=True).clamp(min=_LEAST**4), rooms)
    return given


def budgets(given: Tensor, total: int) -> Tensor:
    """Return fractions [batch, regions] that sum up to `total` as whole numbers that do, by the largest remainders."""
    whole = given.floor()
    left = total - whole.sum(-1, keepdim=True)
    return whole + (_ranks(given - whole) < left).to(whole.dtype)


def _ranks(values: Tensor, among: Tensor | None = None) -> Tensor:
    """Return how many are higher than each of values [batch, n]; of equal ones the first is the higher.

    Args:
        values: the values.
        among: which are compared with which, bool [n, n] or [batch, n, n]; None: all.
    """
    places = torch.arange(values.shape[1], device=values.device)
    mine, theirs = values.unsqueeze(2), values.unsqueeze(1)
    higher = (theirs > mine) | ((theirs == mine) & (places < places.unsqueeze(1)))
    return (higher if among is None else higher & among).sum(-1)


def best_in_groups(scores: Tensor, inside: Tensor, allowed: Tensor, keep: int) -> Tensor:
    """Return the places of the highest scores of each group, by rising place: [batch, keep].

    Args:
        scores: [batch, n].
        inside: which group each is in, as 0 and 1, [n, groups] or [batch, n, groups].
        allowed: how many of each group, [batch, groups].
        keep: their sum, for every sample.
    """
    mine = inside @ inside.transpose(-1, -2) > 0
    limit = (inside @ allowed.unsqueeze(2)).squeeze(2)
    count = scores.shape[1]
    places = torch.where(_ranks(scores, mine) < limit, torch.arange(count, device=scores.device), count)
    return places.topk(keep, dim=-1, largest=False).values


def regions_seen(reduction: Reduction, seen: Seen) -> Regions:
    """Return what budgets are made of, from what the blocks have seen."""
    start = reduction.protect
    scores = SCORES[reduction.score](seen, JOINS[reduction.heads])[:, start:]
    guide = cls_attn((*seen.earlier, seen)[0], JOINS[reduction.heads])[:, start:]
    labels = region_labels(scores.shape[1], reduction.columns, reduction.regions).to(scores.device)
    inside = (labels.unsqueeze(1) == torch.arange(reduction.regions, device=scores.device)).to(scores.dtype)
    if reduction.quota == "context":
        assert seen.hidden is not None, "at the site `output`"
        scores = scores + _VARIETY * variety(seen.hidden[:, start:], inside)
    return Regions(scores, guide, inside, mean_key(seen)[:, start:], reduction)


def best_in_regions(reduction: Reduction, seen: Seen) -> Tensor:
    """Return the places of the tokens that go on, protected ones first, by rising place: [batch, keep]."""
    parts, start = regions_seen(reduction, seen), reduction.protect
    total = reduction.keep - start
    allowed = budgets(shared_out(QUOTAS[reduction.quota](parts), parts.rooms, total), total)
    kept = best_in_groups(parts.scores, parts.inside, allowed, total)
    first = torch.arange(start, device=kept.device).expand(kept.shape[0], -1)
    return torch.cat([first, kept + start], dim=1)
