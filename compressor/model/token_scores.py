"""What tokens are told apart by: pure functions of what a block has seen, one number or one vector per token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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


SCORES: Mapping[str, Callable[[Seen], Tensor]] = {"mean_key": mean_key}
"""Names of scores, as recipes and config.json write them."""
