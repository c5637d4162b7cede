"""What becomes of the tokens of a block when some go: pure functions of a `Choice`.

Each takes the stream x [batch, tokens, width] and sizes [batch, tokens, 1] (how many of the first tokens each token
stands for) and returns both for the tokens that go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compressor.model.token_select import Choice, gathered

Pair = tuple[Tensor, Tensor]


def drop(choice: Choice, x: Tensor, sizes: Tensor) -> Pair:
    """Let tokens go without a trace."""
    return gathered(x, choice.kept), gathered(sizes, choice.kept)


def merge(choice: Choice, x: Tensor, sizes: Tensor) -> Pair:
    """Let every token that goes join the one that stands for it: means, weighted by how many tokens each stands for."""
    assert choice.into is not None
    counts = [choice.kept.shape[1], choice.gone.shape[1]]
    summed = torch.cat([x * sizes, sizes], dim=-1)
    kept, gone = gathered(summed, torch.cat([choice.kept, choice.gone], dim=1)).split(counts, dim=1)
    places = torch.arange(counts[0], device=x.device).unsqueeze(1)
    joins = (choice.into.unsqueeze(1) == places).to(x.dtype)  # [batch, kept, gone]; a product beats a scatter
    total, sizes = (kept + joins @ gone).split([x.shape[-1], 1], dim=-1)
    return total / sizes, sizes


def fuse(choice: Choice, x: Tensor, sizes: Tensor) -> Pair:
    """Let all tokens that go become one at the end: their mean, weighted by `choice.weights` [batch, gone].

    EViT (arXiv 2202.07800, section 3.3) writes a sum; attention over the tokens that go is made to sum to 1 here, which
    keeps the new token in the range of the others.
    """
    fused, stood = fused_token(choice, x, sizes)
    kept, kept_sizes = drop(choice, x, sizes)
    return torch.cat([kept, fused], dim=1), torch.cat([kept_sizes, stood], dim=1)


def fused_token(choice: Choice, x: Tensor, sizes: Tensor) -> Pair:
    """Return the token that stands for all that go, [batch, 1, width], and how many these stand for, [batch, 1, 1]."""
    assert choice.weights is not None
    shares = (choice.weights / choice.weights.sum(-1, keepdim=True)).unsqueeze(1)
    return shares @ gathered(x, choice.gone), gathered(sizes, choice.gone).sum(1, keepdim=True)


def propagate(choice: Choice, x: Tensor, sizes: Tensor) -> Pair:
    """Let tokens that go be added to those that stay, by `choice.weights` [batch, kept, gone]: x_k + W·x_p.

    GTP-ViT (arXiv 2311.03035, section 3.3): α is part of the weights; sizes change in the same way.
    """
    assert choice.weights is not None
    both = torch.cat([x, sizes], dim=-1)
    spread = gathered(both, choice.kept) + choice.weights @ gathered(both, choice.gone)
    stream, stood = spread.split([x.shape[-1], 1], dim=-1)
    return stream, stood


def transform(choice: Choice, x: Tensor, sizes: Tensor) -> Pair:
    """Let every token share itself out over those that stay, by `choice.weights`; protected ones stay what they are.

    Token Transforming (arXiv 2506.05709): X' = W·X, many to many; a mean, weighted by how many tokens each stands for.
    """
    assert choice.weights is not None
    protect = choice.kept.shape[1] - choice.weights.shape[1]
    summed = torch.cat([x * sizes, sizes], dim=-1)
    shared = torch.cat([summed[:, :protect], choice.weights @ summed[:, protect:]], dim=1)
    total, stood = shared.split([x.shape[-1], 1], dim=-1)
    return total / stood, stood


Combination = Callable[[Choice, Tensor, Tensor], Pair]
_SHORTEST = 1e-12


def keeping_norm(combine: Combination, choice: Choice, x: Tensor, sizes: Tensor) -> Pair:
    """Combine tokens to means that are as long as the tokens in them are on average.

    A mean of vectors is shorter than they are. Later blocks norm what they read, so what they add would weigh more on
    it than on any of them. The idea is of ToFu (arXiv 2312.01026), whose merged tokens have the longest length instead.

    Args:
        combine: makes means: one of `COMBINATIONS` that does (merge, fuse, transform).
        choice: which tokens go.
        x: [batch, tokens, width].
        sizes: [batch, tokens, 1].
    """
    both, sizes = combine(choice, torch.cat([x, x.norm(dim=-1, keepdim=True)], dim=-1), sizes)
    made, length = both.split([x.shape[-1], 1], dim=-1)
    return made * (length / made.norm(dim=-1, keepdim=True).clamp(min=_SHORTEST)), sizes


COMBINATIONS: Mapping[str, Combination] = {
    "merge": merge,
    "drop": drop,
    "fuse": fuse,
    "propagate": propagate,
    "transform": transform,
    "cache": drop,
    "restore": drop,
    "exit": drop,
    "recover": drop,
}
"""Names of what becomes of dropped tokens, as recipes and config.json write them.

With `cache` one token made of them waits in the token track, and with `restore` those that wait come back. With `exit`
each waits there as it is until the last block has run; with `recover` each is then made of those that are left.
"""
