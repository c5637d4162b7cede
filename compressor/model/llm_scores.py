"""What image tokens inside a language model are told apart by: pure functions of what a block has seen.

A score is one number for each token of a call, high for those that should stay; those of text tokens count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_PRIME = 2**31 - 1


@dataclass(frozen=True)
class PromptSeen:
    """What a block of a language model has seen of the tokens of a call when it comes to a reduction.

    Attributes:
        places: of the tokens, counted from the first image token: text before has negative ones, [tokens].
        left: how many image tokens there are; text behind has places from there on.
        attention: probabilities [batch, heads, asking, tokens]: of the last token alone, or of all; what goes to the
            cache is left out. None where no token asks.
    """

    places: Tensor
    left: int
    attention: Tensor | None = None


def last_attn(seen: PromptSeen) -> Tensor:
    """Return the attention that the last token pays to each, mean over heads: [batch, tokens].

    FastV (arXiv 2403.06764, section 4.1).
    """
    assert seen.attention is not None, "the last token asks"
    return seen.attention[:, :, -1].mean(1)


def random_score(seen: PromptSeen) -> Tensor:
    """Return numbers that have nothing to do with the tokens, the same for every prompt: [1, tokens] in [0, 1).

    The hash of `compressor.model.token_scores.random_score`, of the place among the image tokens.
    """
    places = seen.places.clamp(min=0).unsqueeze(0) + 1
    hashed = (places * places % _PRIME * places + 7919 * places) % _PRIME * 16807 % _PRIME
    return (hashed.to(torch.float64) / _PRIME).to(torch.float32)


LLM_SCORES: Mapping[str, Callable[[PromptSeen], Tensor]] = {"last_attn": last_attn, "random": random_score}
"""Names of scores inside a language model, as recipes and config.json write them."""
ASKING: Mapping[str, str] = {"last_attn": "last"}
"""Which tokens' attention a score reads: `last`, or `all`; scores that read none are not in it."""


def with_spaced(scores: Tensor, places: Tensor, left: int, spaced: int) -> Tensor:
    """Return scores [batch, tokens] where `spaced` evenly spaced ones of the `left` image tokens are above all others.

    FEATHER (arXiv 2412.13180, section 4): samples all over the image stay, whatever the criterion says.
    """
    steps = places * spaced // left
    chosen = steps != (places - 1) * spaced // left
    return torch.where(chosen, torch.finfo(scores.dtype).max / 2, scores)
