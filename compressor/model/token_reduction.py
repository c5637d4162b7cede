"""One reduction at work: from what a block has seen to a choice, and from a choice to the tokens that go on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.model.blueprint import Reduction
from compressor.model.token_ends import ENDS
from compressor.model.token_merge import COMBINATIONS, Pair, drop, fused_token, keeping_norm
from compressor.model.token_regions import QUOTAS
from compressor.model.token_scores import FEATURES, JOINS, SCORES, Seen, mean_key
from compressor.model.token_select import (
    Choice,
    bipartite,
    gathered,
    highest,
    lowest,
    lowest_and_alike,
    nearest,
    others,
    standing,
)
from compressor.model.token_spread import with_neighbours
from compressor.model.token_texts import (
    joined,
    kept_count,
    kept_counts,
    moved,
    paired,
    partners,
    protected,
    restored,
    staying,
    taken_up,
)

SELECTS = ("bipartite", "topk", "topk_alike", "all", "neighbours", *ENDS)
"""Names of selections, as recipes and config.json write them."""


@dataclass(frozen=True)
class TokenTrack:
    """What is known of the tokens of a batch, wherever they now stand.

    Attributes:
        sizes: how many of the first tokens each token stands for, [batch, tokens, 1].
        importance: attention that each has received so far, [batch, tokens]; None where it is not summed up.
        graph: along which tokens are propagated, [batch, tokens, tokens]; None before the first such reduction.
        cache: tokens that wait to come back, [batch, n, width], and their sizes, [batch, n, 1]; None: there are none.
        mask: of texts: False at padding, bool [batch, tokens]; None of images.
        lengths: of texts: their tokens before the first reduction, [batch, 1]; None of images.
        home: where each token before the first reduction is now stood for, [batch, first tokens]; −1: nowhere. None of
            images whose tokens do not come back.
        exits: what the tokens that have left early were when they left, [batch, first tokens, width]; 0 at others. None
            where none has.
        recovery: what each of the first tokens will be of those that are left, [batch, first tokens, tokens]; rows sum
            to 1. None where they come back otherwise.
    """

    sizes: Tensor
    importance: Tensor | None = None
    graph: Tensor | None = None
    cache: Pair | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None
    home: Tensor | None = None
    exits: Tensor | None = None
    recovery: Tensor | None = None

    @classmethod
    def start(
        cls, hidden: Tensor, *, text: bool = False, mask: Tensor | None = None, returns: bool = False
    ) -> TokenTrack:
        """Return the track of tokens [batch, tokens, width] of which none has gone.

        Args:
            hidden: the stream.
            text: whether they are those of texts.
            mask: of texts: 0 at padding, [batch, tokens]; None where nothing is padded.
            returns: whether those of images come back behind the last block.
        """
        sizes = torch.ones_like(hidden[..., :1])
        if not text:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            return cls(sizes, home=places.expand(hidden.shape[0], -1) if returns else None)
        real = torch.ones_like(hidden[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        places = torch.arange(hidden.shape[1], device=hidden.device)
        home = torch.where(real, places, -1)
        return cls(sizes, mask=real, lengths=real.sum(-1, keepdim=True), home=home)

    def restored(self, hidden: Tensor) -> Tensor:
        """Return hidden states [batch, tokens, width] behind the last block as the head reads them.

        Those of texts, and of images whose tokens come back, have every token again
        (`compressor.model.token_texts.restored`).
        """
        if self.home is None:
            return hidden
        if self.recovery is not None:
            return self.recovery @ hidden
        if self.exits is not None:
            there = gathered(hidden, self.home.clamp(min=0))
            return torch.where(self.home.unsqueeze(2) < 0, self.exits, there)
        mask = torch.ones_like(self.sizes[..., 0], dtype=torch.bool) if self.mask is None else self.mask
        return restored(hidden, self.home, mask, self.sizes)


def check_known(reduction: Reduction) -> None:
    """Raise ModelError where a reduction names what there is not."""
    by_features = reduction.select in ("bipartite", "most_distant", "coverage", "directions")
    scores = FEATURES if by_features else {} if reduction.select == "all" else SCORES
    known = {"select": SELECTS, "score": scores or (reduction.score,), "dropped": COMBINATIONS, "heads": JOINS}
    known["quota"] = tuple(QUOTAS) if reduction.select == "regions" else ("",)
    for key, names in known.items():
        name = getattr(reduction, key)
        if name not in names:
            raise ModelError(
                f"config.json: a token reduction has {key} {name!r}; allowed: {', '.join(names)}",
                hint="The model was written by another version of compressor, or edited.",
            )


def choose(reduction: Reduction, seen: Seen, track: TokenTrack) -> Choice:
    """Return which tokens a reduction lets go on."""
    if reduction.share:
        return choose_in_texts(reduction, seen, track)
    if reduction.select in ENDS:
        return ENDS[reduction.select](reduction, seen)
    if reduction.select == "bipartite":
        return bipartite(FEATURES[reduction.score](seen), reduction.keep, reduction.protect)
    batch, tokens = seen.keys.shape[:2]
    if reduction.select == "all":
        places = torch.arange(tokens, device=seen.keys.device).expand(batch, -1)
        return Choice(places, places[:, :0])
    protect = reduction.protect
    scores = SCORES[reduction.score](seen, JOINS[reduction.heads])
    stay = reduction.keep - (reduction.dropped == "fuse")
    if reduction.select == "neighbours":
        marks = SCORES[reduction.score](seen.earlier[0], JOINS[reduction.heads])
        scores = with_neighbours(scores, marks, reduction.anchors, protect, reduction.columns)
    if reduction.select == "topk_alike":
        gone = lowest_and_alike(scores, mean_key(seen), tokens - stay, reduction.similar, protect)
    else:
        gone = lowest(scores, tokens - stay, protect)
    kept = others(gone, stay)
    if reduction.dropped in ("fuse", "cache"):
        return Choice(kept, gone, weights=scores.gather(1, gone))
    if reduction.dropped == "merge":
        gone = highest(scores, gone, reduction.merged or tokens - stay)
        return Choice(kept, gone, into=nearest(mean_key(seen), kept, gone, protect))
    if reduction.dropped == "propagate":
        assert track.graph is not None, "made at the first such reduction"
        columns = gathered(track.graph, gone)  # symmetric: its rows are its columns
        return Choice(kept, gone, weights=reduction.alpha * gathered(columns.transpose(1, 2), kept))
    if reduction.dropped in ("transform", "recover"):
        return Choice(kept, gone, weights=shares(mean_key(seen), kept, reduction.temperature, protect))
    return Choice(kept, gone)


def choose_in_texts(reduction: Reduction, seen: Seen, track: TokenTrack) -> Choice:
    """Return which tokens of texts a reduction lets go on, as many as each text's own length says."""
    mask, home = track.mask, track.home
    assert mask is not None and home is not None and track.lengths is not None, "tracks of texts have them"
    safe = protected(mask, reduction.protect, reduction.closing)
    counts = kept_counts(track.lengths, reduction.share, reduction.beyond)
    count = kept_count(home.shape[1], reduction.share, reduction.beyond)
    if reduction.select == "bipartite":
        return paired(FEATURES[reduction.score](seen), mask, safe, counts, count)
    choice = staying(SCORES[reduction.score](seen, JOINS[reduction.heads]), mask, safe, counts, count)
    if reduction.dropped != "merge":
        return choice
    assert choice.places is not None
    nearest, partner = partners(mean_key(seen), (choice.places >= 0) & ~safe)
    return joined(choice, partner, mask & (nearest > -2))


def shares(features: Tensor, kept: Tensor, temperature: float, protect: int) -> Tensor:
    """Return how much of each token goes to each of those that stay, protected ones left out; columns sum to 1.

    Token Transforming (arXiv 2506.05709): a softmax over the tokens that stay, of the cosine of features over a
    temperature.

    Args:
        features: [batch, tokens, width].
        kept: places of the tokens that stay, the protected ones first, [batch, kept].
        temperature: the lower it is, the more goes to the most similar one alone.
        protect: how many tokens at the start stay what they are.

    Returns:
        [batch, kept − protect, tokens − protect].
    """
    unit = (features / features.norm(dim=-1, keepdim=True))[:, protect:]
    likeness = unit @ gathered(unit, kept[:, protect:] - protect).transpose(1, 2)
    return torch.as_tensor((likeness / temperature).softmax(-1).transpose(1, 2))


def reduce(reduction: Reduction, choice: Choice, stream: Tensor, track: TokenTrack) -> tuple[Tensor, TokenTrack]:
    """Return the stream between attention and FFN, [batch, kept, width], and the track after a choice."""
    if reduction.share:
        return reduce_texts(reduction, choice, stream, track)
    combine = COMBINATIONS[reduction.dropped]
    if reduction.keep_norm:
        x, sizes = keeping_norm(combine, choice, stream, track.sizes)
    else:
        x, sizes = combine(choice, stream, track.sizes)
    cache = track.cache
    if reduction.dropped == "cache":
        lost = fused_token(choice, stream, track.sizes)
        cache = (
            lost if cache is None else (torch.cat([cache[0], lost[0]], dim=1), torch.cat([cache[1], lost[1]], dim=1))
        )
    elif reduction.dropped == "restore" and cache is not None:
        x, sizes, cache = torch.cat([x, cache[0]], dim=1), torch.cat([sizes, cache[1]], dim=1), None
    importance, graph = track.importance, None
    if importance is not None:
        importance = importance.gather(1, choice.kept)
    if track.graph is not None and reduction.dropped == "propagate":
        graph = gathered(gathered(track.graph, choice.kept).transpose(1, 2), choice.kept)
    home, exits = track.home, track.exits
    if home is not None:
        fused = choice.kept.shape[1] if reduction.dropped == "fuse" else None
        home = moved(home, replace(choice, places=standing(choice, stream.shape[1], fused)))
        if reduction.dropped == "exit":
            assert track.home is not None
            exits = left_early(stream, track.home, home, exits)
        elif reduction.dropped == "recover":
            track = replace(track, recovery=recovery(choice, stream.shape[1], track.recovery))
    return x, replace(track, sizes=sizes, importance=importance, graph=graph, cache=cache, home=home, exits=exits)


def recovery(choice: Choice, tokens: int, before: Tensor | None) -> Tensor:
    """Return what each of the first tokens will be of those that are left, [batch, first tokens, kept].

    One that stays is itself; one that goes is made of those that stay, in the shares `choice.weights` (`shares`).

    Args:
        choice: of `tokens` tokens.
        tokens: before it.
        before: the same before the choice, [batch, first tokens, tokens]; None: these are the first tokens.
    """
    assert choice.weights is not None
    protect = tokens - choice.weights.shape[2]
    made = torch.nn.functional.pad(choice.weights.transpose(1, 2), (protect, 0, protect, 0))
    own = torch.arange(tokens, device=made.device).reshape(1, -1, 1) == choice.kept.unsqueeze(
        1
    )  # [batch, tokens, kept]
    step = torch.where(own.any(-1, keepdim=True), own.to(made.dtype), made)
    return step if before is None else before @ step


def left_early(stream: Tensor, before: Tensor, now: Tensor, exits: Tensor | None) -> Tensor:
    """Return what all tokens that have left early were when they left, [batch, first tokens, width].

    Args:
        stream: tokens of which some leave, [batch, tokens, width].
        before: where in `stream` each of the first tokens is, [batch, first tokens]; −1: it has left before.
        now: where it is behind the reduction.
        exits: those that have left before; None: none has.
    """
    leaving = ((before >= 0) & (now < 0)).unsqueeze(2)
    states = gathered(stream, before.clamp(min=0))
    return torch.where(leaving, states, torch.zeros_like(states) if exits is None else exits)


def reduce_texts(reduction: Reduction, choice: Choice, stream: Tensor, track: TokenTrack) -> tuple[Tensor, TokenTrack]:
    """Return the same of texts; behind the tokens of each that go on stands padding."""
    assert track.home is not None, "tracks of texts have it"
    x, sizes = (taken_up if reduction.dropped == "merge" else drop)(choice, stream, track.sizes)
    importance = None if track.importance is None else track.importance.gather(1, choice.kept)
    home = moved(track.home, choice)
    return x, replace(track, sizes=sizes, importance=importance, mask=choice.valid, home=home)
