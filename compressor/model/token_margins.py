"""How near a choice of tokens came to another one: pure functions of what a block has seen."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from compressor.model.blueprint import Reduction
from compressor.model.token_clusters import density_peaks, distances_and_density
from compressor.model.token_coverage import coverage_gaps
from compressor.model.token_directions import directions_of
from compressor.model.token_regions import QUOTAS, budgets, regions_seen, shared_out
from compressor.model.token_scores import FEATURES, JOINS, SCORES, Seen, hidden_state, mean_key
from compressor.model.token_select import gathered, lowest, nearest_partners
from compressor.model.token_spread import distance_gaps, with_neighbours


def margins(reduction: Reduction, seen: Seen) -> Tensor:
    """Return how far each token's score lies from where it would go instead of staying, or the other way round.

    Args:
        reduction: whose choice it was.
        seen: what it was made by.

    Returns:
        [batch, tokens], in shares of the largest score of the sample; infinite for tokens that could not go.
    """
    batch, tokens = seen.keys.shape[:2]
    if reduction.select == "all":
        return torch.full((batch, tokens), torch.inf)
    protect, gone = reduction.protect, tokens - reduction.keep + (reduction.dropped == "fuse")
    if reduction.select == "bipartite":
        likeness = nearest_partners(FEATURES[reduction.score](seen), protect)[0]
        found = torch.full((batch, tokens), torch.inf)
        start = (protect + 1) // 2
        # those that are most like another go
        found[:, ::2][:, start:] = _apart(-likeness[:, start:], gone)
        return found
    if reduction.select == "most_distant":
        gaps = distance_gaps(FEATURES[reduction.score](seen), reduction.keep, protect)
        return _of_all(gaps, tokens, protect)
    if reduction.select == "coverage":
        assert seen.text is not None, "behind the projector"
        gaps = coverage_gaps(hidden_state(seen)[:, protect:], seen.text, reduction.keep - protect)
        return _of_all(gaps, tokens, protect)
    if reduction.select == "directions":
        patches = hidden_state(seen)[:, protect:]
        return _padded(_apart_of_directions(patches, reduction.regions, reduction.keep - protect), protect)
    if reduction.select == "regions":
        return _padded(_apart_in_regions(reduction, seen), protect)
    every = SCORES[reduction.score](seen, JOINS[reduction.heads])
    scores = every[:, protect:]
    if reduction.select == "k_center":
        return _of_all(distance_gaps(hidden_state(seen), reduction.keep, protect, every), tokens, protect)
    if reduction.select == "clusters":
        border = _apart(scores, gone + reduction.anchors).amin(-1)
        rest = lowest(every, gone + reduction.anchors, protect)
        return _of_all(torch.minimum(border, _peak_gap(hidden_state(seen), rest, gone)), tokens, protect)
    if reduction.select == "topk_anchors":
        return _of_all(_apart(scores, gone + reduction.anchors).amin(-1), tokens, protect)
    if reduction.select == "rows":
        sums = scores.unflatten(1, (-1, reduction.columns)).sum(-1)
        found = _apart(sums, gone // reduction.columns).repeat_interleave(reduction.columns, dim=1)
    elif reduction.select == "neighbours":
        marks = SCORES[reduction.score](seen.earlier[0], JOINS[reduction.heads])
        raised = with_neighbours(scores, marks[:, protect:], reduction.anchors, 0, reduction.columns)
        least = _apart(marks[:, protect:], tokens - protect - reduction.anchors).amin(-1, keepdim=True)
        found = torch.minimum(_apart(raised, gone), least)
    elif reduction.select == "topk_alike":
        found = _apart_alike(scores, mean_key(seen)[:, protect:], gone, reduction.similar)
    else:
        found = _apart(scores, gone)
    return _padded(found, protect)


def _padded(found: Tensor, protect: int) -> Tensor:
    """Return margins [batch, patches] with those of the protected tokens before them."""
    return torch.nn.functional.pad(found, (protect, 0), value=torch.inf)


def _of_all(margin: Tensor, tokens: int, protect: int) -> Tensor:
    """Return [batch, tokens] where each that could go has the margin of its sample, [batch]: one tie moves them all."""
    found = margin.unsqueeze(1).expand(-1, tokens).clone()
    found[:, :protect] = torch.inf
    return found


def _apart(scores: Tensor, gone: int) -> Tensor:
    """Return the distance of scores [batch, n] from the middle between the `gone` lowest and the others."""
    ranked = scores.sort(dim=-1).values
    if not 0 < gone < scores.shape[1]:
        return torch.full_like(scores, torch.inf)
    middle = (ranked[:, gone - 1 : gone] + ranked[:, gone : gone + 1]) / 2
    return (scores - middle).abs() / scores.abs().amax(-1, keepdim=True)


def _apart_alike(scores: Tensor, features: Tensor, gone: int, similar: int) -> Tensor:
    """Return the smallest distance of each token from the borders of `lowest_and_alike`.

    Which tokens the scores leave, and which half of these a token falls into, decides with whom all others are
    compared: a tie there is a tie for all.
    """
    tokens = scores.shape[1]
    left = tokens - gone + similar
    half = left // 2
    borders = [_apart(scores, tokens - count).amin(-1, keepdim=True) for count in (left, half)]
    order = scores.argsort(dim=-1, descending=True)
    unit = features / features.norm(dim=-1, keepdim=True)
    high, low = (gathered(unit, order[:, a:b]) for a, b in ((0, half), (half, left)))
    alike = _apart(-(low @ high.transpose(1, 2)).amax(-1), similar)
    found = torch.full_like(scores, torch.inf).scatter(1, order[:, half:left], alike)
    return torch.minimum(found, torch.minimum(*borders))


def _apart_in_regions(reduction: Reduction, seen: Seen) -> Tensor:
    """Return the distance of each patch from the border in its region; a tie between regions is one for all patches."""
    parts, total = regions_seen(reduction, seen), reduction.keep - reduction.protect
    given = shared_out(QUOTAS[reduction.quota](parts), parts.rooms, total)
    allowed, rest = budgets(given, total), given - given.floor()
    rounded_up = allowed > given.floor()
    lowest_up = torch.where(rounded_up, rest, torch.inf).amin(-1)
    highest_down = torch.where(rounded_up, -torch.inf, rest).amax(-1)
    gap = (lowest_up - highest_down) / given.amax(-1)
    inside = parts.inside.expand(len(given), -1, -1)
    return torch.minimum(_apart_in_groups(parts.scores, inside, allowed), gap.unsqueeze(1))


def _apart_in_groups(scores: Tensor, inside: Tensor, allowed: Tensor) -> Tensor:
    """Return the distance of each score [batch, n] from the border in its group, over the largest of all."""
    found = torch.full_like(scores, torch.inf)
    for sample, group in itertools.product(*map(range, allowed.shape)):
        mine = inside[sample, :, group] > 0
        own = scores[sample, mine]
        if len(own):
            share = own.abs().amax() / scores[sample].abs().amax()
            found[sample, mine] = _apart(own[None], len(own) - int(allowed[sample, group]))[0] * share
    return found


def _apart_of_directions(features: Tensor, count: int, keep: int) -> Tensor:
    """Return the distance of each token from the border in its group; a tie between groups is one for all tokens."""
    found = directions_of(features, count)
    first, second = found.loadings.topk(2, dim=-1).values.unbind(-1)
    groups = ((first - second) / found.loadings.amax((1, 2)).unsqueeze(1)).amin(-1, keepdim=True)
    alike = (found.nearest - found.threshold).abs().amin(-1, keepdim=True)
    border = _apart_in_groups(found.scores, found.inside, found.allowed(keep))
    return torch.minimum(border, torch.minimum(groups, alike))


def _peak_gap(features: Tensor, rest: Tensor, gone: int) -> Tensor:
    """Return how far the centres of clusters among `rest` [batch, n] led the others, where that was least: [batch].

    Which of two tokens is the denser one counts where the other is no farther than the nearest denser one.
    """
    unit = gathered(features / features.norm(dim=-1, keepdim=True), rest)
    distances, density = distances_and_density(unit)
    peaks = density_peaks(unit)
    reach = (peaks / density).unsqueeze(2)
    pairs = (density.unsqueeze(2) - density.unsqueeze(1)).abs()
    itself = torch.eye(rest.shape[1], dtype=torch.bool)
    orders = torch.where((distances <= reach) & ~itself, pairs, torch.inf).amin((1, 2))
    return torch.minimum(orders, _apart(peaks, gone).amin(-1))
