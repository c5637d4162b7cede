"""Language models whose image tokens become fewer, computed layer by layer in float64 with stock modules and numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Score = Callable[[dict[str, Any]], np.ndarray]
"""Gives a number for each of the image tokens, by what a layer shows of one prompt (see `computed`)."""


def attention_of(layer: Any, hidden: Tensor, tables: tuple[Tensor, Tensor]) -> np.ndarray:
    """Return the probabilities [heads, tokens, tokens] of a Llama layer for one prompt [tokens, width]."""
    module = layer.self_attn
    normed = layer.input_layernorm(hidden[None])
    size, tokens = module.head_dim, len(hidden)
    query, key = (
        projection(normed)[0].reshape(tokens, -1, size).transpose(0, 1).numpy()
        for projection in (module.q_proj, module.k_proj)
    )
    cos, sin = (table[0].numpy() for table in tables)
    half = size // 2

    def turned(heads: np.ndarray) -> np.ndarray:
        swapped = np.concatenate([-heads[..., half:], heads[..., :half]], axis=-1)
        return heads * cos + swapped * sin

    key = np.repeat(turned(key), len(query) // len(key), axis=0)
    scores = turned(query) @ key.transpose(0, 2, 1) / np.sqrt(size)
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def computed(
    model: Any, ids: Sequence[int], start: int, count: int, counts: dict[int, int], score: Score
) -> tuple[np.ndarray, list[int]]:
    """Return the logits [tokens left, vocabulary] of one prompt, and the places that are left behind the last layer.

    Args:
        model: a stock Llama model.
        ids: the prompt.
        start: place of the first image token.
        count: image tokens.
        counts: by layer, counted from 0, how many image tokens go on behind it.
        score: is shown `attention` [heads, tokens, tokens], `image` (places of image tokens in the stream), and the
            layer's `input` and `output` [tokens, width].
    """
    model = model.double()
    with torch.no_grad():
        hidden, places = model.model.embed_tokens(torch.as_tensor([list(ids)]))[0], np.arange(len(ids))
        for number, layer in enumerate(model.model.layers):
            tables = model.model.rotary_emb(hidden[None], torch.from_numpy(places)[None])
            mask = torch.full((len(places), len(places)), -torch.inf, dtype=torch.float64).triu(1)[None, None]
            out = layer(hidden[None], attention_mask=mask, position_embeddings=tables)[0]
            if number in counts:
                image = np.flatnonzero((places >= start) & (places < start + count))
                shown = {
                    "attention": attention_of(layer, hidden, tables),
                    "image": image,
                    "input": hidden.numpy(),
                    "output": out.numpy(),
                }
                best = image[np.argsort(-score(shown), kind="stable")[: counts[number]]]
                stay = np.sort(np.concatenate([best, np.setdiff1d(np.arange(len(places)), image)]))
                out, places = out[stay], places[stay]
            hidden = out
        return model.lm_head(model.model.norm(hidden)).numpy(), places.tolist()
