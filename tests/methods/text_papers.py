"""What the papers of the token methods say of one text without padding, in float64 and as plainly as they say it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.methods.token_papers import Array, best, cosine


@dataclass
class Text:
    """One text on its way through a reference model; `members` are the first tokens that each token stands for."""

    x: Array
    members: list[list[int]]
    attention: Array = field(default_factory=lambda: np.zeros(0))
    keys: Array = field(default_factory=lambda: np.zeros(0))
    importance: Array | None = None

    def sizes(self) -> Array:
        return np.array([len(group) for group in self.members], dtype=np.float64)

    def inner(self) -> list[int]:
        """[CLS] and [SEP] never go."""
        return list(range(1, len(self.x) - 1))

    def keep(self, places: list[int]) -> None:
        places = sorted({0, len(self.x) - 1, *places})
        self.x, self.members = self.x[places], [self.members[i] for i in places]
        if self.importance is not None:
            self.importance = self.importance[places]


def received(t: Text, left: int) -> None:
    heads, tokens = t.attention.shape[:2]
    rows = [(h, q) for h in range(heads) for q in range(tokens)]
    significance = np.array([sum(t.attention[h, q, j] for h, q in rows) for j in range(tokens)])
    t.keep(best(significance, t.inner(), left - 2))


def cascade(t: Text, left: int) -> None:
    assert t.importance is not None
    t.keep(best(t.importance, t.inner(), left - 2))


def tome(t: Text, left: int) -> None:
    go = len(t.x) - left
    targets = [b for b in t.inner() if b % 2 == 1]
    edges = []
    for a in (a for a in t.inner() if a % 2 == 0):
        partner = max(targets, key=lambda b: cosine(t.keys[a], t.keys[b]))
        edges.append((cosine(t.keys[a], t.keys[partner]), a, partner))
    edges.sort(reverse=True)
    sizes, x = t.sizes(), t.x * t.sizes()[:, None]
    for _, a, b in edges[:go]:
        x[b], sizes[b] = x[b] + t.x[a] * len(t.members[a]), sizes[b] + len(t.members[a])
        t.members[b] = t.members[b] + t.members[a]
    t.x = x / sizes[:, None]
    gone = {a for _, a, _ in edges[:go]}
    # of a text with too few pairs, the last of the others go without a trace
    gone |= set(sorted(set(t.inner()) - gone, reverse=True)[: go - len(gone)])
    t.keep([i for i in t.inner() if i not in gone])


def at_random(t: Text, left: int) -> None:
    prime = 2**31 - 1
    hashes = [(p * p % prime * p + 7919 * p) % prime * 16807 % prime / prime for p in range(1, len(t.x) + 1)]
    t.keep(best(np.array(hashes), t.inner(), left - 2))


TEXT_PRESETS: dict[str, tuple[Callable[[Text, int], None], dict[str, Any], bool]] = {
    "tome": (tome, {"keep": 0.7, "layers": [1, 3]}, True),
    "received": (received, {"keep": 0.6, "layers": [1, 3]}, False),
    "power-bert": (received, {"shares": [0.7, 0.4], "layers": [2, 4]}, False),
    "spatten": (cascade, {"keep": 0.6, "layers": [2, 4]}, False),
    "random-tokens": (at_random, {"keep": 0.6, "layers": [1, 3]}, False),
}


def papers_states(
    module: Any, ids: torch.Tensor, step: Callable[[Text, int], None], shares: dict[int, int], biased: bool
) -> Array:
    """Return the hidden states [tokens, width] of one text, with a paper's step between attention and FFN."""
    base = module.base_model
    x = base.embeddings(input_ids=ids[None])[0].detach().numpy()
    t, length = Text(x, [[i] for i in range(len(x))]), len(x)
    for index, block in enumerate(base.encoder.layer):
        attention, stream = block.attention, torch.from_numpy(t.x)
        q, k, v = (
            part(stream).reshape(len(stream), attention.self.num_attention_heads, -1).transpose(0, 1)
            for part in (attention.self.query, attention.self.key, attention.self.value)
        )
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        reduced = any(before < index for before in shares)
        probabilities = (scores + torch.from_numpy(t.sizes()).log() if biased and reduced else scores).softmax(-1)
        heads = (probabilities @ v).transpose(0, 1).reshape(len(stream), -1)
        stream = attention.output.LayerNorm(attention.output.dense(heads) + stream)
        t.x, t.attention, t.keys = stream.detach().numpy(), probabilities.detach().numpy(), k.mean(0).detach().numpy()
        t.importance = t.attention.sum((0, 1)) + (0 if t.importance is None else t.importance)
        left = length - math.floor((1000 - shares.get(index, 1000)) * (length - 1) / 1000)
        if left < len(t.x):
            step(t, left)
        stream = torch.from_numpy(t.x)
        t.x = block.output(block.intermediate(stream), stream).detach().numpy()
    out = np.tile(np.average(t.x, axis=0, weights=t.sizes()), (length, 1))
    for state, group in zip(t.x, t.members, strict=True):
        out[group] = state
    return out
