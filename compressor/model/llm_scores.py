"""What image tokens inside a language model are told apart by: pure functions of what a block has seen.

A score is one number for each token of a call, high for those that should stay; those of text tokens count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_PRIME = 2**31 - 1
_ROUNDS = 3


@dataclass(frozen=True)
class PromptSeen:
    """What a block of a language model has seen of the tokens of a call when it comes to a reduction.

    Attributes:
        places: of the tokens, counted from the first image token: text before has negative ones, [tokens].
        left: how many image tokens there are; text behind has places from there on.
        attention: probabilities [batch, heads, asking, tokens]: of the last token alone, or of all; what goes to the
            cache is left out. None where no token asks.
        transitions: how much blocks have changed each token, summed up, [batch, tokens]; None where none has summed.
    """

    places: Tensor
    left: int
    attention: Tensor | None = None
    transitions: Tensor | None = None


def last_attn(seen: PromptSeen) -> Tensor:
    """Return the attention that the last token pays to each, mean over heads: [batch, tokens].

    FastV (arXiv 2403.06764, section 4.1). FEATHER (arXiv 2412.13180) takes the same of queries and keys that are not
    turned by their positions, which favour image tokens near the text (`unturned_attn`).
    """
    assert seen.attention is not None, "the last token asks"
    return seen.attention[:, :, -1].mean(1)


def transition(before: Tensor, after: Tensor) -> Tensor:
    """Return how much a block changes each token, [batch, tokens]: length after / before, times (1 − cosine).

    TransPrune (arXiv 2507.20630, section 3): token transition variation, of magnitude and direction.

    Args:
        before: what enters the block, [batch, tokens, width].
        after: what leaves it.
    """
    short, long = before.norm(dim=-1), after.norm(dim=-1)
    return torch.as_tensor((long / short) * (1 - (before * after).sum(-1) / (long * short)))


def transitions(seen: PromptSeen) -> Tensor:
    """Return the mean of two shares: of the changes summed up, and of the instruction's attention: [batch, tokens].

    TransPrune (arXiv 2507.20630, section 3): the instruction is the text behind the image. Each share is of the sum
    over image tokens.
    """
    assert seen.transitions is not None and seen.attention is not None, "blocks sum up, and all tokens ask"
    asking = (seen.places >= seen.left).to(seen.attention.dtype)
    guided = (asking.reshape(1, 1, -1) @ seen.attention.mean(1)).squeeze(1)
    image = _image(seen).to(guided.dtype)
    parts = [part * image / (part * image).sum(-1, keepdim=True) for part in (seen.transitions, guided)]
    return (parts[0] + parts[1]) / 2


def page_rank(seen: PromptSeen) -> Tensor:
    """Return the rank of each token on the graph of attention, mean over heads: [batch, tokens].

    AIM (arXiv 2412.03248, section 3): a token matters as much as the attention that it gets from tokens that matter;
    s ← Aᵀ·s, from equal ranks on.
    """
    assert seen.attention is not None, "all tokens ask"
    graph = seen.attention.mean(1)
    ranks = graph.mean(1, keepdim=True)
    for _ in range(_ROUNDS - 1):
        ranks = ranks @ graph
    return ranks.squeeze(1)


def enough(seen: PromptSeen, scores: Tensor, mass: float) -> Tensor:
    """Return how many image tokens, highest scores first, have at least a share `mass` of the sum, [1].

    ZipVL (arXiv 2410.08584, section 4): the number of tokens that go on comes from how the attention is spread. The
    largest number over the prompts of a batch.
    """
    ranked = torch.where(_image(seen), scores, 0.0).sort(dim=-1, descending=True).values
    short = ranked.cumsum(-1) < mass * ranked.sum(-1, keepdim=True)
    return (short.sum(-1) + 1).amax(0, keepdim=True).clamp(max=seen.left)


def _image(seen: PromptSeen) -> Tensor:
    return (seen.places >= 0) & (seen.places < seen.left)


def random_score(seen: PromptSeen) -> Tensor:
    """Return numbers that have nothing to do with the tokens, the same for every prompt: [1, tokens] in [0, 1).

    The hash of `compressor.model.token_scores.random_score`, of the place among the image tokens.
    """
    places = seen.places.clamp(min=0).unsqueeze(0) + 1
    hashed = (places * places % _PRIME * places + 7919 * places) % _PRIME * 16807 % _PRIME
    return (hashed.to(torch.float64) / _PRIME).to(torch.float32)


LLM_SCORES: Mapping[str, Callable[[PromptSeen], Tensor]] = {
    "last_attn": last_attn,
    "unturned_attn": last_attn,
    "transitions": transitions,
    "page_rank": page_rank,
    "random": random_score,
}
"""Names of scores inside a language model, as recipes and config.json write them."""
ASKING: Mapping[str, str] = {"last_attn": "last", "unturned_attn": "last", "transitions": "all", "page_rank": "all"}
"""Which tokens' attention a score reads: `last`, or `all`; scores that read none are not in it."""


def with_spaced(scores: Tensor, places: Tensor, left: int, spaced: int) -> Tensor:
    """Return scores [batch, tokens] where `spaced` evenly spaced ones of the `left` image tokens are above all others.

    FEATHER (arXiv 2412.13180, section 4): samples all over the image stay, whatever the criterion says.
    """
    chosen = places * spaced % left < spaced  # where places · spaced / left passes a whole number
    return torch.where(chosen, torch.finfo(scores.dtype).max / 2, scores)


def image_alone(seen: PromptSeen, scores: Tensor) -> Tensor:
    """Return scores [batch or 1, tokens] with those of text tokens above all others."""
    return torch.where(_image(seen), scores, torch.finfo(scores.dtype).max)
