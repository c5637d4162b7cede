"""Which tokens go, and where those go that are merged: pure functions from scores or features to a `Choice`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """A choice of tokens for every sample of a batch.

    Attributes:
        kept: places of the tokens that go on, [batch, kept], in the order in which they will stand.
        gone: places of those that do not, by rising place, [batch, gone].
        into: for each of those, which of the kept ones stands for it from now on, as a place in `kept`: [batch, gone];
            None where none does.
        weights: what each of those counts in what is made of them, [batch, gone]; or how much of each goes to which
            of the kept, [batch, kept, gone]; or of every token, [batch, kept, tokens], protected ones left out. None
            where that is settled without.
        valid: of texts: False where a place of `kept` is padding, bool [batch, kept]; `gone` is then empty.
        places: of texts: for every token the place in `kept` of the one that stands for it from now on, −1 where none
            does, [batch, tokens].
    """

    kept: Tensor
    gone: Tensor
    into: Tensor | None = None
    weights: Tensor | None = None
    valid: Tensor | None = None
    places: Tensor | None = None


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
    nearest, partner = nearest_partners(features, protect)
    gone = nearest.topk(features.shape[1] - keep, dim=-1, sorted=False).indices.sort(dim=-1).values
    target = partner.gather(1, gone) * 2 + 1
    gone = gone * 2
    return Choice(others(gone, keep), gone, target - (gone.unsqueeze(1) < target.unsqueeze(2)).sum(-1))


def nearest_partners(features: Tensor, protect: int) -> tuple[Tensor, Tensor]:
    """Return for each token at an even place how like the likest at an odd one is, and which one that is among them.

    Args:
        features: [batch, tokens, width].
        protect: how many tokens at the start are below all others, and are nobody's partner.

    Returns:
        Cosines and places, both [batch, even].
    """
    unit = features / features.norm(dim=-1, keepdim=True)
    even, odd = unit[:, ::2], unit[:, 1::2]
    likeness = even @ odd.transpose(1, 2)  # [batch, even, odd]
    if protect > 1:
        likeness = likeness + barrier(odd.shape[1], protect // 2, features)
    nearest, partner = likeness.max(-1)
    nearest = nearest + barrier(even.shape[1], (protect + 1) // 2, features)
    return nearest, partner


def lowest(scores: Tensor, count: int, protect: int) -> Tensor:
    """Return the places of the tokens of lowest score, by rising place: [batch, count].

    Args:
        scores: [batch, tokens].
        count: how many; at most as many as are not protected.
        protect: how many tokens at the start are never among them.
    """
    return _guarded(-scores, protect).topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values


def lowest_and_alike(scores: Tensor, features: Tensor, count: int, similar: int, protect: int) -> Tensor:
    """Return the places of the tokens of lowest score and, of the others, of those most like a higher one.

    Zero-TPrune (arXiv 2305.17328, section 3.3): what the scores leave is split into a lower and a higher half; of the
    lower half those go that have the most similar partner in the higher one, by the cosine of their features.

    Args:
        scores: [batch, tokens].
        features: [batch, tokens, width].
        count: how many go in all.
        similar: how many of these for being alike.
        protect: how many tokens at the start neither go nor count as partners.

    Returns:
        By rising place: [batch, count].
    """
    tokens = scores.shape[1]
    order = (-_guarded(-scores, protect)).topk(tokens, dim=-1).indices  # protected ones first
    left = tokens - count + similar
    half = protect + (left - protect) // 2
    unit = features / features.norm(dim=-1, keepdim=True)
    high, low = (gathered(unit, order[:, a:b]) for a, b in ((protect, half), (half, left)))
    alike = (low @ high.transpose(1, 2)).amax(-1).topk(similar, dim=-1, sorted=False).indices
    return torch.cat([order[:, half:left].gather(1, alike), order[:, left:]], dim=1).sort(dim=-1).values


def highest(scores: Tensor, places: Tensor, count: int) -> Tensor:
    """Return those of `places` [batch, n] that have the highest of `scores` [batch, tokens]: [batch, count], rising."""
    if count == places.shape[1]:
        return places
    best = scores.gather(1, places).topk(count, dim=-1, sorted=False).indices
    return places.gather(1, best.sort(dim=-1).values)


def others(gone: Tensor, keep: int) -> Tensor:
    """Return the places of the `keep` tokens that are not among `gone` [batch, gone], both by rising place.

    The i-th token that goes stands before the j-th that stays if gone_i − i ≤ j, so no sort of all tokens is needed.
    """
    places = torch.arange(keep, device=gone.device)
    before = gone - torch.arange(gone.shape[1], device=gone.device)
    return places + (before.unsqueeze(1) <= places.unsqueeze(1)).sum(-1)


def nearest(features: Tensor, kept: Tensor, gone: Tensor, protect: int) -> Tensor:
    """Return for each token of `gone` [batch, gone] the place in `kept` [batch, kept] of the one most like it.

    By the cosine of their features [batch, tokens, width]; the first `protect` of the kept take none up.
    """
    unit = features / features.norm(dim=-1, keepdim=True)
    likeness = gathered(unit, gone) @ gathered(unit, kept).transpose(1, 2)
    return (likeness + barrier(kept.shape[1], protect, features)).argmax(-1)


def standing(choice: Choice, tokens: int, fused: int | None = None) -> Tensor:
    """Return for every token the place of the one that stands for it after a choice, −1 where none does.

    Args:
        choice: of [batch, tokens].
        tokens: before it.
        fused: place of the one token that stands for all that go; None where there is none.

    Returns:
        [batch, tokens].
    """
    kept = torch.arange(choice.kept.shape[1], device=choice.kept.device).expand_as(choice.kept)
    places = torch.full_like(choice.kept[:, :1], -1 if fused is None else fused).repeat(1, tokens)
    places = places.scatter(1, choice.kept, kept)
    return places if choice.into is None else places.scatter(1, choice.gone, choice.into)


def gathered(values: Tensor, places: Tensor) -> Tensor:
    """Return values [batch, tokens, width] at places [batch, n] of their own sample: [batch, n, width].

    Written as one look-up in the flattened batch, which ONNX Runtime does three times as fast as one per sample.
    """
    tokens, width = values.shape[1:]
    starts = torch.arange(places.shape[0], device=values.device).unsqueeze(1) * tokens
    flat = values.reshape(-1, width).index_select(0, (places + starts).reshape(-1))
    return flat.reshape(-1, places.shape[1], width)


def barrier(count: int, protect: int, like: Tensor) -> Tensor:
    """Return what takes the first `protect` of `count` tokens below any cosine, and leaves the others as they are."""
    places = torch.arange(count, device=like.device)
    return torch.where(places < protect, -4.0, 0.0).to(like.dtype)


def _guarded(scores: Tensor, protect: int) -> Tensor:
    """Return scores [batch, tokens] with those of the first `protect` tokens below any other.

    The lowest finite number: a graph holds it as a constant, and constants of a graph must be finite.
    """
    lowest = torch.finfo(scores.dtype).min
    return torch.where(torch.arange(scores.shape[1], device=scores.device) < protect, lowest, scores)
