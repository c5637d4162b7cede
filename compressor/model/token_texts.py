"""Reductions in texts, whose lengths differ: counts come from each text's own length, and padding never counts.

What goes in a text depends on nothing else in its batch. The tokens that stay stand at the start, in their old order;
behind them comes padding up to the count of the longest text, so that the shape depends on the padded length alone.
Behind the last block every token stands in its old place again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.model.token_select import Choice, gathered

_WHOLE = 1000
_ALONE = -4.0
"""Below any cosine."""


def kept_counts(lengths: Tensor, share: int, beyond: int) -> Tensor:
    """Return how many tokens of texts of `lengths` [batch, 1] go on: N − ⌊(1 − share) · max(N − beyond, 0)⌋.

    Args:
        lengths: tokens of each text before the first reduction.
        share: in thousandths, above 0.
        beyond: at least 1, the same in all reductions of a model. So, of two and more tokens, two and more go on.
    """
    return lengths - (lengths - beyond).clamp(min=0) * (_WHOLE - share) // _WHOLE


def kept_count(length: int, share: int, beyond: int) -> int:
    """Return the same for the padded length, which is symbolic while a graph is traced."""
    excess: int = length - 1 if beyond == 1 else torch.sym_max(length - beyond, 0)
    return length - excess * (_WHOLE - share) // _WHOLE


def protected(mask: Tensor, leading: int, closing: int) -> Tensor:
    """Return True for the first `leading` and the last `closing` tokens of each text, bool [batch, tokens].

    Args:
        mask: False at padding, bool [batch, tokens].
        leading: tokens at the start that never go ([CLS]).
        closing: tokens at the end that never go ([SEP]).
    """
    place = mask.cumsum(-1)  # from 1
    return mask & ((place <= leading) | (place > place[:, -1:] - closing))


def staying(scores: Tensor, mask: Tensor, safe: Tensor, counts: Tensor, count: int) -> Choice:
    """Let the tokens of highest score go on, as many of each text as `counts` says.

    Args:
        scores: [batch, tokens].
        mask: False at padding, bool [batch, tokens].
        safe: tokens that go on whatever their score, bool [batch, tokens].
        counts: how many of each text go on, [batch, 1].
        count: tokens of the batch that go on, padding included; at least the highest of `counts`.
    """
    tokens, limits = scores.shape[1], torch.finfo(scores.dtype)
    guarded = torch.where(mask, torch.where(safe, limits.max, scores), limits.min)
    best = guarded.topk(count, dim=-1).indices
    slots = torch.arange(count, device=scores.device)
    valid = slots < counts
    kept = torch.where(valid, best, tokens).sort(dim=-1).values
    kept = torch.where(valid, kept, 0)
    own = (kept.unsqueeze(2) == torch.arange(tokens, device=scores.device)) & valid.unsqueeze(
        2
    )  # [batch, kept, tokens]
    places = (own.to(torch.int64) * (slots + 1).unsqueeze(1)).sum(1) - 1
    return Choice(kept, kept[:, :0], valid=valid, places=places)


def joined(choice: Choice, partner: Tensor, joining: Tensor) -> Choice:
    """Let tokens that go be stood for by their partners, where these stay.

    Args:
        choice: of the tokens that stay.
        partner: for every token a place, [batch, tokens].
        joining: whether a token that goes has a partner, bool [batch, tokens].
    """
    assert choice.places is not None
    there = choice.places.gather(1, partner)
    places = torch.where((choice.places < 0) & joining, there, choice.places)
    return Choice(choice.kept, choice.gone, valid=choice.valid, places=places)


def partners(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return for every token the cosine to the target that is most like it, and that target's place, [batch, tokens].

    Args:
        features: [batch, tokens, width].
        targets: which tokens can be one, bool [batch, tokens]; below −2 is the cosine where there is none.
    """
    unit = features / features.norm(dim=-1, keepdim=True)
    likeness = unit @ unit.transpose(1, 2)
    place = torch.arange(features.shape[1], device=features.device)
    itself = place.unsqueeze(1) == place
    found = torch.where(targets.unsqueeze(1) & ~itself, likeness, _ALONE).max(-1)
    return found.values, found.indices


def paired(features: Tensor, mask: Tensor, safe: Tensor, counts: Tensor, count: int) -> Choice:
    """Merge tokens at even places into those at odd places that are most like them (ToMe), text by text.

    Where a text is so short that more must go than have partners, others go without a trace.

    Args:
        features: [batch, tokens, width].
        mask: False at padding, bool [batch, tokens].
        safe: tokens that neither go nor take others up, bool [batch, tokens].
        counts: how many of each text go on, [batch, 1].
        count: tokens of the batch that go on, padding included.
    """
    place = torch.arange(features.shape[1], device=features.device)
    odd = place % 2 == 1
    free = mask & ~safe
    nearest, partner = partners(features, free & odd)
    joining = free & ~odd & (nearest > _ALONE / 2)
    # those without a partner go last, the later ones first
    scores = torch.where(joining, -nearest, 8 - place.to(features.dtype) / 4096)
    return joined(staying(scores, mask, safe, counts, count), partner, joining)


def taken_up(choice: Choice, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stream [batch, kept, width] and sizes [batch, kept, 1] when tokens join those that stand for them.

    Means, weighted by how many tokens each stands for; padding is 0, of size 1.
    """
    assert choice.places is not None and choice.valid is not None
    slots = torch.arange(choice.kept.shape[1], device=x.device).unsqueeze(1)
    joins = (choice.places.unsqueeze(1) == slots).to(x.dtype)
    total, stood = (joins @ torch.cat([x * sizes, sizes], dim=-1)).split([x.shape[-1], 1], dim=-1)
    stood = torch.where(choice.valid.unsqueeze(2), stood, 1.0)
    return total / stood, stood


def moved(home: Tensor, choice: Choice) -> Tensor:
    """Return where the tokens of the whole text are now stood for, [batch, text]; −1: nowhere.

    Args:
        home: where they were, [batch, text].
        choice: what happened.
    """
    assert choice.places is not None
    return torch.where(home < 0, -1, choice.places.gather(1, home.clamp(min=0)))


def restored(hidden: Tensor, home: Tensor, mask: Tensor, sizes: Tensor) -> Tensor:
    """Return hidden states of all first tokens [batch, text, width]: of each, those of the one that stands for it.

    Tokens that nothing stands for have the mean of those that are left. So the mean over a text is that of the tokens
    that are left, weighted by how many each stands for, and their greatest value stays the greatest.

    Args:
        hidden: of the tokens that are left, [batch, tokens, width].
        home: where each token of the text is stood for, [batch, text]; −1: nowhere.
        mask: False at padding, bool [batch, tokens].
        sizes: [batch, tokens, 1].
    """
    weights = sizes * mask.unsqueeze(2).to(sizes.dtype)
    mean = (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    return torch.where(home.unsqueeze(2) < 0, mean, gathered(hidden, home.clamp(min=0)))
