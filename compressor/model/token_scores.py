"""What tokens are told apart by: pure functions of what a block has seen, one number or one vector per token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What a block has seen of its tokens when it comes to a reduction.

    Attributes:
        keys: attention keys [batch, tokens, heads, head width].
    """

    keys: Tensor


def mean_key(seen: Seen) -> Tensor:
    """Return each token's key, averaged over heads: [batch, tokens, head width] (ToMe, arXiv 2210.09461, section 3)."""
    return seen.keys.mean(2)


def random(seen: Seen) -> Tensor:
    """Return numbers that have nothing to do with the tokens, the same for every sample: [batch, tokens, 8] in [-1, 1).

    A multiplicative hash of place and column (Knuth), so that every runtime computes the same ones.
    """
    batch, tokens = seen.keys.shape[:2]
    places = torch.arange(1, tokens * 8 + 1, device=seen.keys.device).reshape(1, tokens, 8)
    hashed = (places * 2654435761) % 4294967296 // 65536
    return (hashed.to(seen.keys.dtype) / 32768 - 1).expand(batch, -1, -1)


SCORES: Mapping[str, Callable[[Seen], Tensor]] = {"mean_key": mean_key, "random": random}
"""Names of scores, as recipes and config.json write them."""
