"""The part of the modelling file that selects tokens behind an encoder; `compressor.exporters.remote_code` adds it.

Self-contained like the rest of that file: what it imports of this package stands above it there.
"""

from __future__ import annotations

from typing import Any

import torch

from compressor.exporters.modeling_tokens import _going, _hashed, _merged, _others, _reduced, _scores, _spread, _take


# --- from here on, a part of the modelling file ---
def _handed_on(reduction: dict[str, Any], seen: dict[str, Any], hidden: torch.Tensor) -> torch.Tensor:
    """Return what goes on of the last block's output [batch, tokens, width].

    Args:
        reduction: as config.json states it.
        seen: by the block that it reads, as in `_reduced`, `earlier` ones, `hidden`, and `pixels` where it reads them.
        hidden: the last block's output.
    """
    if reduction["score"] == "attention_entropy":
        seen = {
            **seen,
            "entropy": _entropy(seen["pixels"], hidden.shape[1] - reduction["protect"], reduction["columns"]),
        }
    if reduction["select"] == "coverage":
        return _take(hidden, _covering(reduction, seen, hidden))
    if reduction["select"] == "directions":
        return _take(hidden, _of_directions(hidden, reduction["protect"], reduction["regions"], reduction["keep"]))
    if reduction["select"] == "regions":
        return _take(hidden, _in_regions(reduction, seen))
    if reduction["select"] == "k_center":
        return _take(hidden, _spread(reduction, seen))
    if reduction["select"] == "clusters":
        return _clustered(reduction, _scores(reduction, seen), hidden)
    return _reduced(reduction, seen, hidden, {"sizes": torch.ones_like(hidden[..., :1])})[0]


def _covering(reduction: dict[str, Any], seen: dict[str, Any], features: torch.Tensor) -> torch.Tensor:
    """Return the features [batch, n] that cover a question's tokens and all features best, by rising place."""
    text = (features[:, :0] if seen["text"] is None else seen["text"]).double()
    stay = features.shape[1] - seen["keys"].shape[1] + reduction["protect"]  # at the start, whatever they cover
    unit, lengths = features[:, stay:].double(), text.norm(dim=-1, keepdim=True)
    unit, real = unit / unit.norm(dim=-1, keepdim=True), (lengths > 0).to(unit.dtype)
    words = (text / lengths.clamp(min=1e-12) @ unit.transpose(1, 2) / 0.02).softmax(-1) * real
    words = words / real.sum(1, keepdim=True).clamp(min=1)
    alike = (unit @ unit.transpose(1, 2) / 0.2).softmax(-1) * (0.5 / unit.shape[1])
    targets, samples = torch.cat([words, alike], dim=1).transpose(1, 2), torch.arange(len(unit))
    covered, taken, chosen = torch.zeros_like(targets[:, 0]), torch.zeros_like(targets[..., 0]), []
    for _ in range(reduction["keep"] - reduction["protect"]):
        chosen.append(((targets - covered[:, None]).clamp(min=0).sum(-1) + taken).argmax(-1))
        covered = covered.maximum(targets[samples, chosen[-1]])
        taken[samples, chosen[-1]] = -1.0
    kept = torch.stack(chosen, dim=1).sort(dim=-1).values + stay
    return torch.cat([torch.arange(stay, device=kept.device).expand(len(kept), -1), kept], dim=1)


def _entropy(pixels: torch.Tensor, patches: int, columns: int) -> torch.Tensor:
    """Return the entropy of 16 grey levels in each patch, [batch, patches]."""
    grey = pixels[:, 0]
    for channel in range(1, pixels.shape[1]):
        grey = grey + pixels[:, channel]
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    level = ((grey - low) / (high - low).clamp(min=1e-6) * 16).floor().clamp(max=15)
    rows = patches // columns
    height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
    cells = level[:, : rows * height, : columns * width].unflatten(2, (columns, width)).unflatten(1, (rows, height))
    cells = cells.transpose(2, 3).reshape(len(pixels), patches, -1, 1)
    shares = (cells == torch.arange(16, device=pixels.device)).to(pixels.dtype).mean(2)
    return torch.as_tensor(-(shares * shares.clamp(min=1e-6).log()).sum(-1))


def _ranked(values: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
    """Return how many of those that it is compared with are higher than each value [batch, n]."""
    places = torch.arange(values.shape[1], device=values.device)
    mine, theirs = values[:, :, None], values[:, None]
    higher = (theirs > mine) | ((theirs == mine) & (places < places[:, None]))
    return (higher if among is None else higher & among).sum(-1)


def _allowed(weights: torch.Tensor, rooms: torch.Tensor, total: int) -> torch.Tensor:
    """Return how many tokens of each group [batch, groups] go on, `total` in all."""
    weights = weights.maximum(1e-6 * weights.sum(-1, keepdim=True))
    given = torch.zeros_like(weights)
    for _ in range(weights.shape[1]):
        free = weights.where(given < rooms, torch.zeros_like(weights))
        left = total - given.sum(-1, keepdim=True)
        given = (given + left * free / free.sum(-1, keepdim=True).clamp(min=1e-24)).minimum(rooms)
    whole = given.floor()
    return whole + (_ranked(given - whole) < total - whole.sum(-1, keepdim=True)).to(whole.dtype)


def _in_groups(scores: torch.Tensor, inside: torch.Tensor, allowed: torch.Tensor, keep: int) -> torch.Tensor:
    """Return the patches [batch, keep] of the highest scores of each group, by rising place."""
    ranks = _ranked(scores, inside @ inside.transpose(-1, -2) > 0)
    stays = ranks < (inside @ allowed[..., None])[..., 0]
    places = torch.arange(scores.shape[1], device=scores.device)
    return places.where(stays, torch.full_like(places, len(places))).sort(dim=-1).values[:, :keep]


def _in_regions(reduction: dict[str, Any], seen: dict[str, Any]) -> torch.Tensor:
    """Return the tokens [batch, keep] of the highest scores of each region, by rising place."""
    protect, columns, regions = reduction["protect"], reduction["columns"], reduction["regions"]
    scores = _scores(reduction, seen)[:, protect:]
    guide = _scores({**reduction, "score": "cls_attn"}, [*seen["earlier"], seen][0])[:, protect:]
    places, side = torch.arange(scores.shape[1], device=scores.device), round(regions**0.5)
    rows = len(places) // columns
    labels = places // columns * side // rows * side + places % columns * side // columns
    inside = (labels[:, None] == torch.arange(regions, device=scores.device)).to(scores.dtype)
    others = (inside @ inside.T).masked_fill(places[:, None] == places, 0.0)
    count, rooms = others.sum(-1).clamp(min=1), inside.sum(0)
    if reduction["quota"] == "attention":
        weights = guide @ inside
    elif reduction["quota"] == "guided":
        weights = rooms * (1 + (guide @ inside / reduction["temperature"]).softmax(-1) - 1 / regions)
    elif reduction["quota"] == "context":
        unit = seen["hidden"][:, protect:] / seen["hidden"][:, protect:].norm(dim=-1, keepdim=True)
        cosines = unit @ unit.transpose(1, 2)
        mean = (cosines * others).sum(-1, keepdim=True) / count[:, None]
        scores = scores + 0.09 * ((cosines - mean).square() * others).sum(-1) / count
        weights = (scores @ inside / reduction["temperature"]).softmax(-1)
    else:
        keys = seen["keys"].mean(2)[:, protect:]
        unit = keys / keys.norm(dim=-1, keepdim=True)
        alike = (unit @ unit.transpose(1, 2) >= reduction["alike"]).to(unit.dtype)
        weights = rooms * (1 - (alike * others).sum(-1) @ inside / (others.sum(-1) @ inside).clamp(min=1))
    keep = reduction["keep"] - protect
    kept = _in_groups(scores, inside, _allowed(weights, rooms, keep), keep) + protect
    return torch.cat([torch.arange(protect, device=kept.device).expand(len(kept), -1), kept], dim=1)


def _of_directions(hidden: torch.Tensor, protect: int, count: int, keep: int) -> torch.Tensor:
    """Return the tokens [batch, keep] of every principal direction, those first that no other one stands for."""
    patches = hidden[:, protect:]
    centred = patches - patches.mean(1, keepdim=True)
    centred = centred / centred.square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
    found = _hashed(patches, count)
    for _ in range(3):
        columns, basis = centred @ (centred.transpose(1, 2) @ found), centred[..., :0]
        for place in range(count):
            column = columns[..., place : place + 1]
            column = column / column.norm(dim=1, keepdim=True).clamp(min=1e-12)
            for _ in range(2 if place else 0):
                column = column - basis @ (basis.transpose(1, 2) @ column)
            basis = torch.cat([basis, column / column.norm(dim=1, keepdim=True).clamp(min=1e-12)], dim=-1)
        found = basis
    own, groups = found.abs().max(-1)
    inside = (groups[..., None] == torch.arange(count, device=hidden.device)).to(hidden.dtype)
    unit, tokens = patches / patches.norm(dim=-1, keepdim=True), patches.shape[1]
    cosines = unit @ unit.transpose(1, 2)
    mean = (cosines.sum((1, 2)) - tokens) / (tokens * (tokens - 1))
    above = (own[:, None] > own[..., None]) & (groups[:, None] == groups[..., None])
    alone = cosines.masked_fill(~above, -2.0).amax(-1) < (1 + mean[:, None]) / 2
    sizes = inside.sum(1)
    scores = own + 2 * alone.to(own.dtype)
    kept = _in_groups(scores, inside, _allowed(sizes, sizes, keep - protect), keep - protect) + protect
    return torch.cat([torch.arange(protect, device=kept.device).expand(len(kept), -1), kept], dim=1)


def _clustered(reduction: dict[str, Any], scores: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the highest tokens as they are, and centres of clusters of the others, with these merged into them."""
    keep, clusters = reduction["keep"], reduction["anchors"]
    every = hidden / hidden.norm(dim=-1, keepdim=True)
    rest = _going(scores, every, scores.shape[1] - keep + clusters, {**reduction, "similar": 0})
    unit, count = _take(every, rest), rest.shape[1]
    itself = torch.eye(count, dtype=torch.bool, device=hidden.device)
    squared = (2 - 2 * unit @ unit.transpose(1, 2)).clamp(min=0).masked_fill(itself, 0.0)
    near = squared.masked_fill(itself, 8.0).topk(min(5, count - 1), dim=-1, largest=False).values
    density, distances = (-near.mean(-1)).exp(), squared.sqrt()
    places = torch.arange(count, device=hidden.device)
    denser = density[:, None] > density[:, :, None]
    denser |= (density[:, None] == density[:, :, None]) & (places < places[:, None])
    reach = torch.where(denser, distances, distances.amax((1, 2), keepdim=True)).amin(-1)
    at = (density * reach).topk(clusters, dim=-1).indices.sort(dim=-1).values
    centres, gone = rest.gather(1, at), rest.gather(1, _others(at, count - clusters))
    kept = torch.cat([_others(rest, keep - clusters), centres], dim=1).sort(dim=-1).values
    nearest = (_take(every, gone) @ _take(every, centres).transpose(1, 2)).argmax(-1)
    into = (kept[:, None] < centres.gather(1, nearest)[..., None]).sum(-1)
    return _merged(hidden, torch.ones_like(hidden[..., :1]), kept, gone, into)[0]
