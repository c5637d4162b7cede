"""Which tokens go, and where those go that are merged: pure functions from scores to a `Choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """A choice of tokens for every sample of a batch, as indices.

    Attributes:
        kept: which tokens go on, [batch, kept], in the order in which they will stand.
        gone: which tokens do not, [batch, gone].
        into: for each of those, which of the kept ones stands for it from now on, as a place in `kept`: [batch, gone].
    """

    kept: Tensor
    gone: Tensor
    into: Tensor


def bipartite(features: Tensor, keep: int, protect: int) -> Choice:
    """Merge each of the tokens at even places that is most like one at an odd place into that one.

    The matching of ToMe (arXiv 2210.09461, section 3 and appendix D): every second token is compared with all the
    others by the cosine of their features, and those with the nearest partners go.

    Args:
        features: [batch, tokens, width].
        keep: how many tokens go on; at least half of them, and all that are protected.
        protect: how many tokens at the start neither go nor take others up.

    Returns:
        The choice; tokens that go on stay in their old order.
    """
    unit = features / features.norm(dim=-1, keepdim=True)
    even, odd = unit[:, ::2], unit[:, 1::2]
    likeness = even @ odd.transpose(1, 2)  # [batch, even, odd]
    if protect > 1:
        likeness = likeness + _barrier(odd.shape[1], protect // 2, features)
    nearest, partner = likeness.max(-1)
    nearest = nearest + _barrier(even.shape[1], (protect + 1) // 2, features)
    gone = nearest.topk(features.shape[1] - keep, dim=-1, sorted=False).indices.sort(dim=-1).values
    return _joined(gone * 2, partner.gather(1, gone) * 2 + 1, keep)


def _joined(gone: Tensor, target: Tensor, keep: int) -> Choice:
    """Return the choice in which tokens `gone` [batch, gone], by rising place, join those at places `target`.

    The i-th token that goes stands before the j-th that stays if gone_i − i ≤ j, so no sort of all tokens is needed.
    """
    places = torch.arange(keep, device=gone.device)
    before = gone - torch.arange(gone.shape[1], device=gone.device)
    kept = places + (before.unsqueeze(1) <= places.unsqueeze(1)).sum(-1)
    return Choice(kept, gone, target - (gone.unsqueeze(1) < target.unsqueeze(2)).sum(-1))


def _barrier(count: int, protect: int, like: Tensor) -> Tensor:
    """Return what takes the first `protect` of `count` tokens below any cosine, and leaves the others as they are."""
    places = torch.arange(count, device=like.device)
    return torch.where(places < protect, -4.0, 0.0).to(like.dtype)


SELECTS: Mapping[str, Callable[[Tensor, int, int], Choice]] = {"bipartite": bipartite}
"""Names of selections, as recipes and config.json write them."""
