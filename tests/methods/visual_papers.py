"""What the papers of selections behind an image encoder say, for one image, in float64 and as plainly as they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np

from tests.methods.token_papers import Array, best, cosine

COLUMNS, BLOCKS = 4, 3


@dataclass
class Image:
    """What the blocks of an encoder have seen of one image: attention [blocks, heads, tokens, tokens] and so on."""

    hidden: Array
    attention: Array
    keys: Array
    values: Array
    pixels: Array

    def class_attention(self, block: int = -1) -> Array:
        """Of the patches."""
        return np.asarray(self.attention[block, :, 0, 1:].mean(0))


Kept = list[list[int]]
"""For each token that goes on the patches that it is the mean of, in order of their first."""


def alone(patches: list[int]) -> Kept:
    return [[patch] for patch in sorted(patches)]


def divprune(s: Image, left: int) -> Kept:
    x = s.hidden[1:]
    distance = np.array([[1 - cosine(a, b) for b in x] for a in x])
    everything = list(range(len(x)))
    chosen = [max(everything, key=lambda i: min(distance[i, j] for j in everything if j != i))]
    while len(chosen) < left:
        rest = [i for i in everything if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(distance[i, j] for j in chosen)))
    return alone(chosen)


def fopru_rank(s: Image, left: int) -> Kept:
    return alone(best(s.class_attention(), list(range(16)), left))


def fopru_rows(s: Image, left: int) -> Kept:
    sums = [sum(s.class_attention()[row * COLUMNS : (row + 1) * COLUMNS]) for row in range(4)]
    rows = best(np.array(sums), list(range(4)), left // COLUMNS)
    return alone([row * COLUMNS + column for row in rows for column in range(COLUMNS)])


def joined(alone: list[int], centres: list[int], rest: list[int], likeness: Callable[[int, int], float]) -> Kept:
    groups = {i: [i] for i in [*alone, *centres]}
    for i in rest:
        if i not in centres:
            groups[max(centres, key=lambda c: likeness(i, c))].append(i)
    return [groups[i] for i in sorted(groups)]


def recycled(s: Image, scores: Array, left: int, anchors: int) -> Kept:
    dominant = best(scores, list(range(16)), left - anchors)
    rest = [i for i in range(16) if i not in dominant]
    centres, keys = rest[:: len(rest) // anchors][:anchors], s.keys[-1].mean(0)[1:]
    return joined(dominant, centres, rest, lambda i, c: cosine(keys[i], keys[c]))


def visionzip(s: Image, left: int) -> Kept:
    return recycled(s, s.class_attention(), left, 2)


def vtc_cls(s: Image, left: int) -> Kept:
    scores = np.mean([s.class_attention(block) for block in range(BLOCKS)], axis=0)
    return alone(best(scores, list(range(16)), left))


def hiprune(s: Image, left: int) -> Kept:
    middle, deep = (s.attention[block].mean((0, 1))[1:] for block in (1, 2))
    (anchor,) = best(middle, list(range(16)), 1)
    row, column = divmod(anchor, COLUMNS)
    around = [(row + down, column + right) for down, right in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))]
    first = [r * COLUMNS + c for r, c in around if 0 <= r < 4 and 0 <= c < COLUMNS]
    return alone([*first, *best(deep, [i for i in range(16) if i not in first], left - len(first))])


def flowcut(s: Image, left: int) -> Kept:
    total: Array | None = None
    for block in range(BLOCKS):
        values = s.values[block].transpose(1, 0, 2).reshape(17, -1)
        products = np.exp(values @ values[0])
        alike = products / products.sum()
        score = (s.attention[block, :, 0].mean(0) + alike) * np.abs(values).sum(1)
        total = score if total is None else 0.5 * total + 0.5 * score
    assert total is not None
    return alone(best(total[1:], list(range(16)), left))


def shared(weights: Sequence[float], rooms: Sequence[int], total: int) -> list[int]:
    """Whole numbers by weight that sum up to a total: what a room cannot hold goes on, then the largest remainders."""
    given, free, left = {}, set(range(len(weights))), float(total)
    while free:
        parts = {i: left * weights[i] / sum(weights[j] for j in free) for i in free}
        full = [i for i in free if parts[i] > rooms[i]]
        given |= {i: float(rooms[i]) for i in full} if full else parts
        free = free - set(full) if full else set()
        left -= sum(rooms[i] for i in full)
    whole = [floor(given[i]) for i in range(len(weights))]
    order = sorted(range(len(weights)), key=lambda i: whole[i] - given[i])
    for i in order[: total - sum(whole)]:
        whole[i] += 1
    return whole


REGIONS = [[row * COLUMNS + column for row in (a, a + 1) for column in (b, b + 1)] for a in (0, 2) for b in (0, 2)]


def of_regions(scores: Array, weights: Sequence[float], left: int) -> Kept:
    counts = shared(weights, [len(region) for region in REGIONS], left)
    return alone([i for region, count in zip(REGIONS, counts, strict=True) for i in best(scores, region, count)])


def hired(s: Image, left: int) -> Kept:
    early = s.class_attention(0)
    return of_regions(s.class_attention(), [sum(early[region]) for region in REGIONS], left)


def globalcom2(s: Image, left: int) -> Kept:
    scores = s.class_attention()
    softened = np.exp([sum(scores[region]) / 0.1 for region in REGIONS])
    return of_regions(scores, [left / 16 * (1 + x / sum(softened) - 1 / 4) * 4 for x in softened], left)


def holov(s: Image, left: int) -> Kept:
    x, scores = s.hidden[1:], s.class_attention().copy()
    for region in REGIONS:
        for i in region:
            scores[i] += 0.09 * np.var([cosine(x[i], x[j]) for j in region if j != i])
    return of_regions(scores, list(np.exp([sum(scores[region]) / 0.1 for region in REGIONS])), left)


ALIKE = 0.1


def correlation(s: Image, left: int) -> Kept:
    keys = s.keys[-1].mean(0)[1:]
    densities = [
        np.mean([cosine(keys[i], keys[j]) < ALIKE for i in region for j in region if i != j]) for region in REGIONS
    ]
    assert len(set(densities)) > 1, "some regions repeat themselves more than others"
    return of_regions(s.class_attention(), [max(d, 1e-9) for d in densities], left)


def todre(s: Image, left: int) -> Kept:
    x, everything = s.hidden[1:], list(range(16))
    chosen = best(s.class_attention(), everything, 1)
    while len(chosen) < left:
        rest = [i for i in everything if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(1 - cosine(x[i], x[j]) for j in chosen)))
    return alone(chosen)


def entropy(patch: Array, low: float, high: float) -> float:
    counts = np.bincount(np.minimum((patch - low) / (high - low) * 16, 15).astype(int).ravel())
    shares = counts[counts > 0] / patch.size
    return float(-(shares * np.log(shares)).sum())


def vflowopt(s: Image, left: int) -> Kept:
    grey = s.pixels.sum(0)
    side = len(grey) // COLUMNS
    patches = [grey[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(4) for c in range(COLUMNS)]
    entropies = np.array([entropy(patch, grey.min(), grey.max()) for patch in patches])
    scores = s.class_attention() / s.class_attention().sum() + entropies / entropies.sum()
    return recycled(s, scores, left, 2)


def recoverable(s: Image, left: int) -> Kept:
    clusters, x = 3, s.hidden[1:]
    dominant = best(x @ s.hidden[0], list(range(16)), left - clusters)
    rest = [i for i in range(16) if i not in dominant]
    unit = {i: x[i] / np.linalg.norm(x[i]) for i in rest}
    apart = {(i, j): float(np.linalg.norm(unit[i] - unit[j])) for i in rest for j in rest}
    density = {i: np.exp(-np.mean(sorted(apart[i, j] ** 2 for j in rest if j != i)[:5])) for i in rest}
    reach = {i: min((apart[i, j] for j in rest if density[j] > density[i]), default=max(apart.values())) for i in rest}
    centres = sorted(rest, key=lambda i: -density[i] * reach[i])[:clusters]
    return joined(dominant, centres, rest, lambda i, c: cosine(x[i], x[c]))


def mmtok(features: Array, text: Array, left: int) -> list[int]:
    def softmax(values: list[float]) -> Array:
        weights = np.exp(values)
        return np.asarray(weights / weights.sum())

    words = np.array([softmax([cosine(t, x) / 0.02 for x in features]) for t in text])
    image = np.array([softmax([cosine(y, x) / 0.2 for x in features]) for y in features])

    def coverage(chosen: list[int]) -> float:
        of_text = words[:, chosen].max(1).mean() if len(text) else 0.0
        return float(of_text + 0.5 * image[:, chosen].max(1).mean())

    chosen: list[int] = []
    while len(chosen) < left:
        rest = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: coverage([*chosen, i])))
    return sorted(chosen)


def prunesid(s: Image, left: int) -> Kept:
    count, x = 3, s.hidden[1:]
    centred = x - x.mean(0)
    numbers = [(place * 2654435761) % 2**32 // 2**16 / 2**15 - 1 for place in range(1, 16 * count + 1)]
    directions = np.array(numbers).reshape(16, count)
    for _ in range(3):  # rounds of orthogonal iteration
        directions = np.linalg.qr(centred @ centred.T @ directions)[0]
    loadings = np.abs(directions)
    cosines = np.array([[cosine(a, b) for b in x] for a in x])
    limit = (1 + cosines[~np.eye(16, dtype=bool)].mean()) / 2
    groups = [[i for i in range(16) if loadings[i].argmax() == group] for group in range(count)]
    kept = []
    for group, number in enumerate(shared([len(g) for g in groups], [len(g) for g in groups], left)):
        ranked = best(loadings[:, group], groups[group], 16)
        free = [i for n, i in enumerate(ranked) if all(cosines[i, j] < limit for j in ranked[:n])]
        kept += [*free, *(i for i in ranked if i not in free)][:number]
    return alone(kept)


PRESETS: dict[str, tuple[Callable[[Image, int], Kept], str, dict[str, Any]]] = {
    "divprune": (divprune, "divprune", {}),
    "fopru": (fopru_rank, "fopru", {}),
    "fopru rows": (fopru_rows, "fopru", {"select": "rows"}),
    "visionzip": (visionzip, "visionzip", {"anchors": 0.25}),
    "vtc-cls": (vtc_cls, "vtc-cls", {}),
    "hiprune": (hiprune, "hiprune", {"earlier": [2], "anchors": 0.7}),
    "flowcut": (flowcut, "flowcut", {}),
    "hired": (hired, "hired", {"regions": 4}),
    "globalcom2": (globalcom2, "globalcom2", {"regions": 4, "temperature": 0.1}),
    "holov": (holov, "holov", {"regions": 4, "temperature": 0.1}),
    "correlation": (correlation, "correlation", {"regions": 4, "alike": ALIKE}),
    "todre": (todre, "todre", {}),
    "vflowopt": (vflowopt, "vflowopt", {"anchors": 0.25}),
    "prunesid": (prunesid, "prunesid", {"directions": 3}),
    "recoverable": (recoverable, "recoverable", {"anchors": 0.375}),
}
"""By name of the case: the formula, the preset, its options beside the number of tokens."""
