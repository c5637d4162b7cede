"""Language models whose image tokens become fewer, computed layer by layer in float64 with stock modules and numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Score = Callable[[dict[str, Any]], np.ndarray]
"""Gives a number for each of the image tokens, by what a layer shows of one prompt (see `computed`)."""
Count = int | Callable[[np.ndarray], int]


def attention_of(layer: Any, hidden: Tensor, tables: tuple[Tensor, Tensor], turned: bool = True) -> np.ndarray:
    """Return the probabilities [heads, tokens, tokens] of a Llama layer for one prompt [tokens, width].

    `turned`: whether positions count.
    """
    module = layer.self_attn
    normed = layer.input_layernorm(hidden[None])
    size, tokens = module.head_dim, len(hidden)
    query, key = (
        projection(normed)[0].reshape(tokens, -1, size).transpose(0, 1).numpy()
        for projection in (module.q_proj, module.k_proj)
    )
    cos, sin = (table[0].numpy() for table in tables)
    half = size // 2

    def placed(heads: np.ndarray) -> np.ndarray:
        if not turned:
            return heads
        swapped = np.concatenate([-heads[..., half:], heads[..., :half]], axis=-1)
        return heads * cos + swapped * sin

    key = np.repeat(placed(key), len(query) // len(key), axis=0)
    scores = placed(query) @ key.transpose(0, 2, 1) / np.sqrt(size)
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def computed(
    model: Any,
    ids: Sequence[int],
    start: int,
    count: int,
    counts: dict[int, Count],
    score: Score,
) -> tuple[np.ndarray, list[int]]:
    """Return the logits [tokens left, vocabulary] of one prompt, and the places that are left behind the last layer.

    Args:
        model: a stock Llama model.
        ids: the prompt.
        start: place of the first image token.
        count: image tokens.
        counts: by layer, counted from 0, how many image tokens go on behind it, or what tells by their scores.
        score: is shown `attention` [heads, tokens, tokens] and the same `unturned`, `image` (places of image tokens in
            the stream), `changes` of this and each earlier layer [layers, tokens], and the `layer`.
    """
    model = model.double()
    with torch.no_grad():
        changes = np.zeros((0, len(ids)))
        hidden, places = model.model.embed_tokens(torch.as_tensor([list(ids)]))[0], np.arange(len(ids))
        for number, layer in enumerate(model.model.layers):
            tables = model.model.rotary_emb(hidden[None], torch.from_numpy(places)[None])
            mask = torch.full((len(places), len(places)), -torch.inf, dtype=torch.float64).triu(1)[None, None]
            out = layer(hidden[None], attention_mask=mask, position_embeddings=tables)[0]
            before, after = hidden.numpy(), out.numpy()
            lengths = [np.sqrt((side**2).sum(-1)) for side in (before, after)]
            change = lengths[1] / lengths[0] * (1 - (before * after).sum(-1) / (lengths[0] * lengths[1]))
            changes = np.concatenate([changes, change[None]])
            if number in counts:
                image = np.flatnonzero((places >= start) & (places < start + count))
                shown = {
                    "attention": attention_of(layer, hidden, tables),
                    "unturned": attention_of(layer, hidden, tables, turned=False),
                    "image": image,
                    "changes": changes,
                    "layer": number,
                }
                scores, wanted = score(shown), counts[number]
                left = wanted(scores) if callable(wanted) else wanted
                best = image[np.argsort(-scores, kind="stable")[:left]]
                stay = np.sort(np.concatenate([best, np.setdiff1d(np.arange(len(places)), image)]))
                out, places, changes = out[stay], places[stay], changes[:, stay]
            hidden = out
        return model.lm_head(model.model.norm(hidden)).numpy(), places.tolist()
