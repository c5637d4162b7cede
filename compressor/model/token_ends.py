"""Selections behind the last block of an encoder, where all hidden states are known: from what was seen to a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compressor.model.blueprint import Reduction
from compressor.model.token_clusters import with_clusters
from compressor.model.token_coverage import most_covering
from compressor.model.token_directions import best_of_directions
from compressor.model.token_regions import best_in_regions
from compressor.model.token_scores import FEATURES, JOINS, SCORES, Seen, hidden_state, mean_key
from compressor.model.token_select import Choice, others
from compressor.model.token_spread import best_rows, most_distant, with_anchors


def scores_of(reduction: Reduction, seen: Seen) -> Tensor:
    """Return how much each token matters to a reduction, [batch, tokens]."""
    return SCORES[reduction.score](seen, JOINS[reduction.heads])


def of_kept(kept: Tensor, tokens: int) -> Choice:
    """Return the choice of which the tokens that stay are known, by rising place, [batch, kept]."""
    return Choice(kept, others(kept, tokens - kept.shape[1]))


def _most_distant(reduction: Reduction, seen: Seen) -> Choice:
    features = FEATURES[reduction.score](seen)
    return of_kept(most_distant(features, reduction.keep, reduction.protect), features.shape[1])


def _k_center(reduction: Reduction, seen: Seen) -> Choice:
    features, scores = hidden_state(seen), scores_of(reduction, seen)
    return of_kept(most_distant(features, reduction.keep, reduction.protect, scores), features.shape[1])


def _regions(reduction: Reduction, seen: Seen) -> Choice:
    return of_kept(best_in_regions(reduction, seen), seen.keys.shape[1])


def _rows(reduction: Reduction, seen: Seen) -> Choice:
    scores = scores_of(reduction, seen)
    return of_kept(best_rows(scores, reduction.keep, reduction.protect, reduction.columns), scores.shape[1])


def _topk_anchors(reduction: Reduction, seen: Seen) -> Choice:
    scores = scores_of(reduction, seen)
    return with_anchors(scores, mean_key(seen), reduction.keep, reduction.anchors, reduction.protect)


def _clusters(reduction: Reduction, seen: Seen) -> Choice:
    scores = scores_of(reduction, seen)
    return with_clusters(scores, hidden_state(seen), reduction.keep, reduction.anchors, reduction.protect)


def _coverage(reduction: Reduction, seen: Seen) -> Choice:
    features, start = hidden_state(seen), reduction.protect
    assert seen.text is not None, "behind the projector"
    return _of_patches(most_covering(features[:, start:], seen.text, reduction.keep - start), reduction, features)


def _directions(reduction: Reduction, seen: Seen) -> Choice:
    features, start = hidden_state(seen), reduction.protect
    kept = best_of_directions(features[:, start:], reduction.regions, reduction.keep - start)
    return _of_patches(kept, reduction, features)


def _of_patches(kept: Tensor, reduction: Reduction, features: Tensor) -> Choice:
    """Return the choice of which the patches that stay are known, by rising place, [batch, kept patches]."""
    first = torch.arange(reduction.protect, device=kept.device).expand(kept.shape[0], -1)
    return of_kept(torch.cat([first, kept + reduction.protect], dim=1), features.shape[1])


ENDS: Mapping[str, Callable[[Reduction, Seen], Choice]] = {
    "most_distant": _most_distant,
    "k_center": _k_center,
    "regions": _regions,
    "rows": _rows,
    "topk_anchors": _topk_anchors,
    "clusters": _clusters,
    "coverage": _coverage,
    "directions": _directions,
}
"""Names of selections, as recipes and config.json write them."""
