"""What the papers of the token methods say, for one image, in float64 and as plainly as they say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Sample:
    """One image on its way through a reference model: its tokens and all that the papers let blocks remember."""

    x: Array
    sizes: Array
    leading: int
    columns: int
    importance: Array | None = None
    graph: Array | None = None
    cache: list[tuple[Array, float]] = field(default_factory=list)
    attention: Array = field(default_factory=lambda: np.zeros(0))
    keys: Array = field(default_factory=lambda: np.zeros(0))

    def patches(self) -> list[int]:
        return list(range(self.leading, len(self.x)))

    def keep(self, places: list[int]) -> None:
        places = sorted(places)
        self.x, self.sizes = self.x[places], self.sizes[places]
        if self.importance is not None:
            self.importance = self.importance[places]


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def best(scores: Array, among: list[int], count: int) -> list[int]:
    return sorted(among, key=lambda i: -scores[i])[:count]


def cls_attention(s: Sample) -> Array:
    return np.mean([s.attention[h, c] for h in range(len(s.attention)) for c in range(s.leading)], axis=0)


def evit(s: Sample, left: int) -> None:
    a = cls_attention(s)
    stay = best(a, s.patches(), left)
    gone = [i for i in s.patches() if i not in stay]
    fused = sum(a[i] * s.x[i] for i in gone) / sum(a[i] for i in gone)
    size = sum(s.sizes[i] for i in gone)
    s.keep([*range(s.leading), *stay])
    s.x, s.sizes = np.vstack([s.x, fused]), np.append(s.sizes, size)


def received(s: Sample, left: int) -> None:
    heads, tokens = s.attention.shape[:2]
    column = np.array([sum(s.attention[h, q, j] for h in range(heads) for q in range(tokens)) for j in range(tokens)])
    s.keep([*range(s.leading), *best(column, s.patches(), left)])


def spatten(s: Sample, left: int) -> None:
    assert s.importance is not None
    s.keep([*range(s.leading), *best(s.importance, s.patches(), left)])


def attentive_mask(s: Sample, left: int) -> None:
    spatten(s, left)


def zero_tprune(s: Sample, left: int) -> None:
    heads, tokens = s.attention.shape[:2]
    ranks, variances = [], []
    for h in range(heads):
        votes = np.ones(tokens)
        for _ in range(3):
            votes = s.attention[h].T @ votes
        ranks.append(votes)
        variances.append(np.var(votes))
    counted = [h for h in range(heads) if 0.01 <= variances[h] <= 0.7] or list(range(heads))
    rank = np.sqrt(sum(ranks[h] ** 2 for h in counted) / len(counted))
    similar = max(round(0.25 * (len(s.patches()) - left)), 1)
    order = best(rank, s.patches(), left + similar)
    high, low = order[: len(order) // 2], order[len(order) // 2 :]
    alike = sorted(low, key=lambda i: -max(cosine(s.keys[i], s.keys[j]) for j in high))[:similar]
    s.keep([*range(s.leading), *(i for i in order if i not in alike)])


def gtp(s: Sample, left: int) -> None:
    assert s.graph is not None
    diagonal = np.array([max(a[i, i] for a in s.attention) for i in range(len(s.x))])
    column = np.array([max(a[:, i].sum() for a in s.attention) for i in range(len(s.x))])
    stay = sorted([*range(s.leading), *best(diagonal * column, s.patches(), left)])
    gone = [i for i in s.patches() if i not in stay]
    x = np.array([s.x[k] + 0.1 * sum(s.graph[k, p] * s.x[p] for p in gone) for k in stay])
    sizes = np.array([s.sizes[k] + 0.1 * sum(s.graph[k, p] * s.sizes[p] for p in gone) for k in stay])
    s.x, s.sizes, s.graph = x, sizes, s.graph[np.ix_(stay, stay)]


def gtp_graph(x: Array, leading: int, columns: int) -> Array:
    tokens = len(x)
    edges = np.zeros((tokens, tokens))
    patches = range(leading, tokens)
    for i in patches:
        row, column = divmod(i - leading, columns)
        for j in patches:
            apart = max(abs(row - (j - leading) // columns), abs(column - (j - leading) % columns))
            if apart == 1:
                edges[i, j] = 1
        for j in sorted((j for j in patches if j != i), key=lambda j: -cosine(x[i], x[j]))[:8]:
            edges[i, j] = edges[j, i] = 1
    degree = edges.sum(1)
    scale = np.array([1 / np.sqrt(d) if d else 0.0 for d in degree])
    return np.asarray(scale[:, None] * edges * scale)


def token_transforming(s: Sample, left: int) -> None:
    column = s.attention.mean(0).sum(0)
    stay = sorted(best(column, s.patches(), left))
    weights = np.exp([[cosine(s.keys[k], s.keys[i]) / TEMPERATURE for i in s.patches()] for k in stay])
    weights /= weights.sum(0)
    sizes = weights @ s.sizes[s.leading :]
    x = weights @ (s.x * s.sizes[:, None])[s.leading :] / sizes[:, None]
    s.x = np.vstack([s.x[: s.leading], x])
    s.sizes = np.append(s.sizes[: s.leading], sizes)


def at_length(s: Sample, left: int) -> None:
    """Token Transforming, and the new tokens as long as their parts are on average (ToFu, arXiv 2312.01026)."""
    column = s.attention.mean(0).sum(0)
    stay, old = sorted(best(column, s.patches(), left)), s.patches()
    parts = {k: np.array([np.exp(cosine(s.keys[k], s.keys[i]) / TEMPERATURE) for i in old]) for k in stay}
    whole = sum(parts.values())
    x, sizes = list(s.x[: s.leading]), list(s.sizes[: s.leading])
    for k in stay:
        counts = parts[k] / whole * s.sizes[old]
        mean = sum(c * s.x[i] for c, i in zip(counts, old, strict=True)) / counts.sum()
        length = sum(c * np.sqrt(sum(s.x[i] ** 2)) for c, i in zip(counts, old, strict=True)) / counts.sum()
        x.append(mean / np.sqrt(sum(mean**2)) * length)
        sizes.append(counts.sum())
    s.x, s.sizes = np.array(x), np.array(sizes)


def diffrate(s: Sample, left: int) -> None:
    a = cls_attention(s)
    order = best(a, s.patches(), len(s.patches()))
    stay, gone = order[:left], order[left:]
    x, sizes = s.x * s.sizes[:, None], s.sizes.copy()
    for i in gone[: max(round(0.5 * len(gone)), 1)]:
        target = max(stay, key=lambda k: cosine(s.keys[i], s.keys[k]))
        x[target] += s.x[i] * s.sizes[i]
        sizes[target] += s.sizes[i]
    s.x, s.sizes = x / sizes[:, None], sizes
    s.keep([*range(s.leading), *stay])


def clca(s: Sample, left: int) -> None:
    a = cls_attention(s)
    stay = best(a, s.patches(), left)
    gone = [i for i in s.patches() if i not in stay]
    s.cache.append((sum(a[i] * s.x[i] for i in gone) / sum(a[i] for i in gone), sum(s.sizes[i] for i in gone)))
    s.keep([*range(s.leading), *stay])


TEMPERATURE = 0.02
PRESETS: dict[str, tuple[Callable[[Sample, int], None], dict[str, Any], bool]] = {
    "evit": (evit, {"keep": 0.6, "layers": [1, 3]}, False),
    "received": (received, {"keep": 0.6, "layers": [1, 3]}, False),
    "spatten": (spatten, {"keep": 0.6, "layers": [2, 4]}, False),
    "attentive-mask": (attentive_mask, {"keep": 0.6, "layers": [2, 4]}, False),
    "zero-tprune": (zero_tprune, {"keep": 0.6, "layers": [1, 3]}, False),
    "gtp": (gtp, {"r": 3}, True),
    "token-transforming": (token_transforming, {"tokens": 6, "layers": [1, 3]}, True),
    "diffrate": (diffrate, {"r": 3}, True),
    "clca": (clca, {"keep": 0.6, "layers": [1, 2]}, False),
}


def papers_logits(
    module: Any, image: torch.Tensor, leading: int, step: Callable[[Sample, int], None], counts: dict[int, int],
    biased: bool,
) -> torch.Tensor:  # fmt: skip
    """Run one image through the model in float64, block by block, with a paper's step between attention and FFN."""
    base = module.base_model
    x = base.embeddings(image[None])[0]
    s = Sample(x.detach().numpy(), np.ones(len(x)), leading, int(round((len(x) - leading) ** 0.5)))
    for index, block in enumerate(base.layers):
        if step is gtp and s.graph is None:
            s.graph = gtp_graph(s.x, leading, s.columns)
        attention, stream = block.attention, torch.from_numpy(s.x)
        normed = block.layernorm_before(stream)
        q, k, v = (
            part(normed).reshape(len(stream), attention.num_attention_heads, -1).transpose(0, 1)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        probabilities = (scores + torch.from_numpy(s.sizes).log() if biased else scores).softmax(-1)
        stream = stream + attention.o_proj((probabilities @ v).transpose(0, 1).reshape(len(stream), -1))
        s.x, s.attention, s.keys = stream.detach().numpy(), probabilities.detach().numpy(), k.mean(0).detach().numpy()
        if step is spatten:
            s.importance = s.attention.sum((0, 1)) + (0 if s.importance is None else s.importance)
        if step is attentive_mask:
            s.importance = cls_attention(s) + (0 if s.importance is None else s.importance)
        if index in counts:
            step(s, counts[index])
        if index == len(base.layers) - 2:
            for token, size in s.cache:
                s.x, s.sizes = np.vstack([s.x, token]), np.append(s.sizes, size)
        stream = torch.from_numpy(s.x)
        s.x = (stream + block.mlp(block.layernorm_after(stream))).detach().numpy()
    final = base.layernorm(torch.from_numpy(s.x))
    if hasattr(module, "distillation_classifier"):
        return torch.as_tensor((module.cls_classifier(final[0]) + module.distillation_classifier(final[1])) / 2)
    return torch.as_tensor(module.classifier(final[0]))
