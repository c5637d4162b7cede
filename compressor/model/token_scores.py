"""What tokens are told apart by: pure functions of what a block has seen.

A *score* is one number per token, high for those that should stay. *Features* are a vector per token; tokens whose
features point the same way are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_PRIME = 2**31 - 1
_ROUNDS = 3
_VARIANCE = (0.01, 0.7)
_FLAT = 1e-6
"""Below any sum of entropies but that of an image of one colour."""


@dataclass(frozen=True)
class Seen:
    """What a block has seen of its tokens when it comes to a reduction.

    Attributes:
        keys: attention keys [batch, tokens, heads, head width].
        leading: how many tokens at the start stand for the whole image (class token, distillation token; no registers).
        values: attention values like `keys`; None where the block has not looked.
        attention: probabilities [batch, heads, queries, keys]; None where the block has not looked.
        importance: attention received in this and earlier blocks [batch, tokens]; None where it is not summed up.
        hidden: the last block's output [batch, tokens, width]; None for a reduction inside a block.
        earlier: what the blocks that `Reduction.also` names have seen; none for a reduction inside a block.
        mask: of texts: False at padding, bool [batch, tokens]; None where nothing is padded.
        entropy: of the pixels of each patch [batch, patches]; None where no score asks for it.
        text: embeddings of a question's tokens [batch, words, width]; None where no selection asks for them.
    """

    keys: Tensor
    leading: int = 1
    values: Tensor | None = None
    attention: Tensor | None = None
    importance: Tensor | None = None
    hidden: Tensor | None = None
    earlier: tuple[Seen, ...] = ()
    mask: Tensor | None = None
    entropy: Tensor | None = None
    text: Tensor | None = None


Join = Callable[[Tensor], Tensor]
"""Makes of numbers per head [batch, heads, tokens] one per token [batch, tokens]."""


def informative(scores: Tensor) -> Tensor:
    """Return the root mean square over the heads whose scores neither are all alike nor pick out a few tokens.

    Zero-TPrune (arXiv 2305.17328, section 3.2): heads count if the variance over tokens of their scores, of mean 1,
    lies in [0.01, 0.7]; where no head's does, all count.

    Args:
        scores: [batch, heads, tokens].

    Returns:
        [batch, tokens].
    """
    variance = (scores / scores.mean(-1, keepdim=True)).var(-1, correction=0)
    counts = ((variance >= _VARIANCE[0]) & (variance <= _VARIANCE[1])).to(scores.dtype)  # [batch, heads]
    counts = torch.where(counts.sum(-1, keepdim=True) > 0, counts, torch.ones_like(counts)).unsqueeze(-1)
    return ((scores.square() * counts).sum(1) / counts.sum(1)).sqrt()


JOINS: Mapping[str, Join] = {
    "mean": lambda scores: scores.mean(1),
    "max": lambda scores: scores.amax(1),
    "rms": lambda scores: scores.square().mean(1).sqrt(),
    "informative": informative,
}
"""Names of what makes one score of those of all heads, as config.json writes them."""


def mean_key(seen: Seen) -> Tensor:
    """Return each token's key, averaged over heads: [batch, tokens, head width] (ToMe, arXiv 2210.09461, section 3)."""
    return seen.keys.mean(2)


def random_features(seen: Seen) -> Tensor:
    """Return numbers that have nothing to do with the tokens, the same for every sample: [batch, tokens, 8] in [-1, 1).

    A multiplicative hash of place and column (Knuth), so that every runtime computes the same ones.
    """
    return hashed_features(seen.keys, 8)


def hashed_features(like: Tensor, width: int) -> Tensor:
    """Return numbers for tokens [batch, tokens, …] as `random_features` does: [batch, tokens, width]."""
    batch, tokens = like.shape[:2]
    places = torch.arange(1, tokens * width + 1, device=like.device).reshape(1, tokens, width)
    hashed = (places * 2654435761) % 4294967296 // 65536
    return (hashed.to(like.dtype) / 32768 - 1).expand(batch, -1, -1)


def cls_attn(seen: Seen, join: Join) -> Tensor:
    """Return how much attention the leading tokens pay to each token, joined over heads: [batch, tokens].

    EViT (arXiv 2202.07800, section 3.2); of several leading tokens the mean.
    """
    return join(_attention(seen)[:, :, : seen.leading].mean(2))


def received(seen: Seen, join: Join) -> Tensor:
    """Return the mean attention that all tokens pay to each token, joined over heads: [batch, tokens]."""
    attention = _attention(seen)
    if seen.mask is None:
        return join(attention.mean(2))
    return join(column_sums(attention, seen.mask) / seen.mask.sum(-1).reshape(-1, 1, 1))


def column_sums(attention: Tensor, mask: Tensor | None) -> Tensor:
    """Return what all tokens but padding pay to each token, [batch, heads, keys].

    Args:
        attention: probabilities [batch, heads, queries, keys].
        mask: False at padding, bool [batch, queries]; None where nothing is padded.
    """
    if mask is None:
        return attention.sum(2)
    return (mask.to(attention.dtype)[:, None, None] @ attention).squeeze(2)


def cls_attn_layers(seen: Seen, join: Join) -> Tensor:
    """Return the mean of `cls_attn` over this and the earlier blocks: [batch, tokens] (VTC-CLS, arXiv 2412.05819)."""
    layers = [cls_attn(block, join) for block in (*seen.earlier, seen)]
    return torch.stack(layers).mean(0)


def flowcut(seen: Seen, join: Join) -> Tensor:
    """Return the information flow through each token, summed up over blocks: [batch, tokens].

    FlowCut (arXiv 2505.19536): in a block, attention of the class token plus how much its value is like the token's
    (softmax of products), times the size of the token's value (sum of magnitudes); a block's scores count as much as
    those of all blocks before it.
    """
    total: Tensor | None = None
    for block in (*seen.earlier, seen):
        assert block.values is not None, "a block whose reduction reads values keeps them"
        values = block.values.flatten(2)
        alike = (values @ values[:, :1].transpose(1, 2)).squeeze(2).softmax(-1)
        score = (cls_attn(block, join) + alike) * values.abs().sum(-1)
        total = score if total is None else (total + score) / 2
    assert total is not None
    return total


def hidden_state(seen: Seen) -> Tensor:
    """Return the last block's output: [batch, tokens, width]."""
    assert seen.hidden is not None, "at the site `output`"
    return seen.hidden


def attention_entropy(seen: Seen, join: Join) -> Tensor:
    """Return each patch's share of the class token's attention plus its share of the entropy: [batch, tokens].

    VFlowOpt (arXiv 2508.05211): attention of the class token and entropy of the patch's pixels, each of sum 1.
    """
    assert seen.entropy is not None, "at the site `output`"
    patches = seen.entropy.shape[1]
    attention = cls_attn(seen, join)
    leading, shares = attention[:, :-patches], attention[:, -patches:]
    shares = shares / shares.sum(-1, keepdim=True)
    entropy = seen.entropy / seen.entropy.sum(-1, keepdim=True).clamp(min=_FLAT)
    return torch.cat([leading, shares + entropy], dim=1)


def cls_similarity(seen: Seen, join: Join) -> Tensor:
    """Return the product of each token's hidden state with the class token's: [batch, tokens].

    Recoverable compression (arXiv 2409.01179), visual score.
    """
    hidden = hidden_state(seen)
    return (hidden @ hidden[:, :1].transpose(1, 2)).squeeze(2)


def wpr(seen: Seen, join: Join) -> Tensor:
    """Return the weighted page rank on the attention graph, joined over heads: [batch, tokens].

    Zero-TPrune (arXiv 2305.17328, section 3.2): a token's vote counts as much as the votes that it got itself,
    s ← Aᵀ·s, from equal votes on.
    """
    votes = _attention(seen).mean(2)
    for _ in range(_ROUNDS - 1):
        votes = (votes.unsqueeze(2) @ _attention(seen)).squeeze(2)
    return join(votes)


def diag_x_col(seen: Seen, join: Join) -> Tensor:
    """Return diagonal × column sum of attention, each joined over heads before: [batch, tokens].

    GTP-ViT (arXiv 2311.03035, section 3.2): how hard a token is to regenerate from others (the attention that it pays
    to itself) times how much it tells them.
    """
    attention = _attention(seen)
    return join(attention.diagonal(dim1=2, dim2=3)) * join(attention.sum(2))


def value_norm(seen: Seen, join: Join) -> Tensor:
    """Return the length of each token's value, joined over heads: [batch, tokens]."""
    assert seen.values is not None, "a block whose reduction reads values keeps them"
    return join(seen.values.norm(dim=-1).transpose(1, 2))


def cascade(seen: Seen, join: Join) -> Tensor:
    """Return the attention received in this and all earlier blocks, summed over heads: [batch, tokens].

    Of all tokens: SpAtten (arXiv 2012.09852, section III-A); of the leading ones: A-CLIP (arXiv 2212.08653).
    """
    assert seen.importance is not None, "blocks up to a reduction that reads it sum it up"
    return seen.importance


def summed(score: str, attention: Tensor, leading: int, mask: Tensor | None) -> Tensor:
    """Return what one block adds to `Seen.importance`, summed over heads: [batch, tokens].

    Args:
        score: `cascade`: what all tokens pay; `cls_sum`: what the leading ones pay.
        attention: probabilities [batch, heads, queries, keys].
        leading: how many tokens at the start stand for the whole image.
        mask: of texts: False at padding, bool [batch, queries].
    """
    if score == "cls_sum":
        return attention[:, :, :leading].mean(2).sum(1)
    return column_sums(attention, mask).sum(1)


def random_score(seen: Seen, join: Join) -> Tensor:
    """Return numbers that have nothing to do with the tokens, the same for every sample: [batch, tokens] in [0, 1).

    A cubic hash of the place, so that every runtime computes the same ones and neighbours do not go together.
    """
    batch, tokens = seen.keys.shape[:2]
    places = torch.arange(1, tokens + 1, device=seen.keys.device).unsqueeze(0)
    hashed = (places * places % _PRIME * places + 7919 * places) % _PRIME * 16807 % _PRIME
    return (hashed.to(torch.float64) / _PRIME).to(seen.keys.dtype).expand(batch, -1)


def _attention(seen: Seen) -> Tensor:
    assert seen.attention is not None, "a block whose reduction reads attention computes it"
    return seen.attention


FEATURES: Mapping[str, Callable[[Seen], Tensor]] = {
    "mean_key": mean_key,
    "random": random_features,
    "hidden_state": hidden_state,
}
"""Names of features, as recipes and config.json write them."""
SCORES: Mapping[str, Callable[[Seen, Join], Tensor]] = {
    "cls_attn": cls_attn,
    "cls_attn_layers": cls_attn_layers,
    "flowcut": flowcut,
    "received": received,
    "wpr": wpr,
    "diag_x_col": diag_x_col,
    "value_norm": value_norm,
    "attention_entropy": attention_entropy,
    "cls_similarity": cls_similarity,
    "cascade": cascade,
    "cls_sum": cascade,
    "random": random_score,
}
"""Names of scores, as recipes and config.json write them."""
ATTENTIVE = (
    *("cls_attn", "cls_attn_layers", "flowcut", "received", "wpr", "diag_x_col", "cascade", "value_norm"),
    *("cls_sum", "attention_entropy"),
)
"""Scores for which a block must show its attention's probabilities or values."""
