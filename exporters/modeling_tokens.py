"""The part of the modelling file in which tokens become fewer; `compressor.exporters.remote_code` puts it there.

Self-contained like the rest of that file: it imports nothing of this package and repeats some of its code on purpose.
"""

from __future__ import annotations

from typing import Any

import torch


# --- from here on, a part of the modelling file ---
def _take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return values [batch, tokens, width] at places [batch, n]."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _hashed(keys: torch.Tensor, width: int = 8) -> torch.Tensor:
    """Return numbers that have nothing to do with the tokens, [batch, tokens, width]."""
    batch, tokens = keys.shape[:2]
    places = torch.arange(1, tokens * width + 1, device=keys.device).reshape(1, tokens, width)
    hashed = (places * 2654435761) % 4294967296 // 65536
    return (hashed.to(keys.dtype) / 32768 - 1).expand(batch, -1, -1)


def _joined(scores: torch.Tensor, how: str) -> torch.Tensor:
    """Return one score per token [batch, tokens] of those of all heads [batch, heads, tokens]."""
    if how == "mean":
        return scores.mean(1)
    if how == "max":
        return scores.amax(1)
    counts = torch.ones_like(scores[..., :1])
    if how == "informative":
        spread = (scores / scores.mean(-1, keepdim=True)).var(-1, correction=0, keepdim=True)
        fits = ((spread >= 0.01) & (spread <= 0.7)).to(scores.dtype)
        counts = torch.where(fits.sum(1, keepdim=True) > 0, fits, counts)
    return ((scores.square() * counts).sum(1) / counts.sum(1)).sqrt()


def _scores(reduction: dict[str, Any], seen: dict[str, Any]) -> torch.Tensor:
    """Return how much each token matters, [batch, tokens]."""
    name, heads = reduction["score"], reduction.get("heads", "mean")
    if name == "random":
        batch, tokens = seen["keys"].shape[:2]
        prime, places = 2**31 - 1, torch.arange(1, tokens + 1, device=seen["keys"].device)[None]
        hashed = (places * places % prime * places + 7919 * places) % prime * 16807 % prime
        return (hashed.double() / prime).to(seen["keys"].dtype).expand(batch, -1)
    if name == "value_norm":
        return _joined(seen["values"].norm(dim=-1).transpose(1, 2), heads)
    if name == "attention_entropy":
        shares, patches = _scores({**reduction, "score": "cls_attn"}, seen), seen["entropy"].shape[1]
        attention = shares[:, -patches:] / shares[:, -patches:].sum(-1, keepdim=True)
        entropy = seen["entropy"] / seen["entropy"].sum(-1, keepdim=True).clamp(min=1e-6)
        return torch.cat([shares[:, :-patches], attention + entropy], dim=1)
    if name == "cls_similarity":
        return torch.as_tensor((seen["hidden"] @ seen["hidden"][:, 0, :, None])[..., 0])
    if name in ("cascade", "cls_sum"):
        return torch.as_tensor(seen["importance"])
    if name == "cls_attn_layers":
        alone = {**reduction, "score": "cls_attn"}
        return torch.stack([_scores(alone, block) for block in (*seen["earlier"], seen)]).mean(0)
    if name == "flowcut":
        total: Any = 0.0
        for number, block in enumerate((*seen["earlier"], seen)):
            values = block["values"].flatten(2)
            alike = (values @ values[:, 0, :, None])[..., 0].softmax(-1)
            score = (_scores({**reduction, "score": "cls_attn"}, block) + alike) * values.abs().sum(-1)
            total = (total + score) / 2 if number else score
        return torch.as_tensor(total)
    attention = seen["attention"]
    if name == "cls_attn":
        asking = reduction.get("classes") or reduction["protect"]
        return _joined(attention[:, :, :asking].mean(2), heads)
    if name == "diag_x_col":
        return _joined(attention.diagonal(dim1=2, dim2=3), heads) * _joined(attention.sum(2), heads)
    if "mask" in seen:
        return _joined(_columns(attention, seen["mask"]), heads)
    votes = attention.mean(2)
    for _ in range(2 if name == "wpr" else 0):
        votes = (votes[:, :, None] @ attention)[:, :, 0]
    return _joined(votes, heads)


def _paired(features: torch.Tensor, keep: int, protect: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the tokens [batch, n] that stay, those that go, and which of the former each of the latter joins."""
    unit = features / features.norm(dim=-1, keepdim=True)
    likeness = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    likeness[:, :, : protect // 2] = -torch.inf
    nearest, partner = likeness.max(-1)
    nearest[:, : (protect + 1) // 2] = -torch.inf
    even = nearest.topk(features.shape[1] - keep, dim=-1).indices.sort(dim=-1).values
    gone, target = even * 2, partner.gather(1, even) * 2 + 1
    return _others(gone, keep), gone, target - (gone[:, None, :] < target[:, :, None]).sum(-1)


def _others(gone: torch.Tensor, keep: int) -> torch.Tensor:
    places = torch.arange(keep, device=gone.device)
    before = gone - torch.arange(gone.shape[1], device=gone.device)
    return places + (before[:, None, :] <= places[None, :, None]).sum(-1)


def _going(scores: torch.Tensor, unit: torch.Tensor, count: int, reduction: dict[str, Any]) -> torch.Tensor:
    """Return the tokens [batch, count] that go, by rising place; `unit` are their features, of length 1."""
    protect, similar = reduction["protect"], reduction.get("similar", 0)
    guarded = scores.clone()
    guarded[:, :protect] = torch.inf
    order = guarded.topk(scores.shape[1], dim=-1).indices
    left = scores.shape[1] - count + similar
    gone = order[:, left:]
    if similar:
        half = protect + (left - protect) // 2
        low, high = order[:, half:left], order[:, protect:half]
        alike = (_take(unit, low) @ _take(unit, high).transpose(1, 2)).amax(-1).topk(similar, dim=-1).indices
        gone = torch.cat([gone, low.gather(1, alike)], dim=1)
    return gone.sort(dim=-1).values


def _graph(hidden: torch.Tensor, leading: int, columns: int) -> torch.Tensor:
    """Return D^(-1/2)·A·D^(-1/2), where A joins patches that touch in the image or are alike."""
    patches = hidden[:, leading:]
    unit, count = patches / patches.norm(dim=-1, keepdim=True), patches.shape[1]
    places = torch.arange(count, device=hidden.device)
    likeness = (unit @ unit.transpose(1, 2)).masked_fill(places[:, None] == places, -4.0)
    alike = likeness >= likeness.topk(min(8, count - 1), dim=-1).values[..., -1:]
    rows, across = places // columns, places % columns
    beside = ((rows[:, None] - rows).abs() <= 1) & ((across[:, None] - across).abs() <= 1)
    edges = (alike | alike.transpose(1, 2) | (beside & (places[:, None] != places))).to(hidden.dtype)
    root = edges.sum(-1, keepdim=True).rsqrt()
    return torch.nn.functional.pad(root * edges * root.transpose(1, 2), (leading, 0, leading, 0))


def _merged(
    x: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, gone: torch.Tensor, into: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(kept.shape[1], device=x.device)[None, :, None]
    joins = (into[:, None, :] == places).to(x.dtype)
    weighted, total = x * sizes, _take(sizes, kept) + joins @ _take(sizes, gone)
    return (_take(weighted, kept) + joins @ _take(weighted, gone)) / total, total


def _reduced(
    reduction: dict[str, Any], seen: dict[str, Any], x: torch.Tensor, track: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the same as `_combined`; with `keep_norm` means are as long as the tokens in them are on average."""
    if not reduction.get("keep_norm"):
        return _combined(reduction, seen, x, track)
    both, after = _combined(reduction, seen, torch.cat([x, x.norm(dim=-1, keepdim=True)], dim=-1), track)
    made, length = both[..., :-1], both[..., -1:]
    return made * (length / made.norm(dim=-1, keepdim=True).clamp(min=1e-12)), after


def _combined(
    reduction: dict[str, Any], seen: dict[str, Any], x: torch.Tensor, track: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the stream [batch, kept, width] and what is known of its tokens after a reduction.

    Args:
        reduction: as config.json states it.
        seen: by the block of its tokens: keys [batch, tokens, heads, head width], and values, attention, importance.
        x: the stream [batch, tokens, width].
        track: `sizes` [batch, tokens, 1], and importance, graph and cache where a reduction needs them.
    """
    sizes, dropped, protect, keep = track["sizes"], reduction["dropped"], reduction["protect"], reduction["keep"]
    if dropped == "restore":
        cache, stood = track.get("cache", (x[:, :0], sizes[:, :0]))
        return torch.cat([x, cache], dim=1), {"sizes": torch.cat([sizes, stood], dim=1)}
    waiting = {"cache": track["cache"]} if "cache" in track else {}
    features = seen["keys"].mean(2)
    if reduction["select"] == "bipartite":
        features = features if reduction["score"] == "mean_key" else _hashed(seen["keys"])
        pairs = _paired(features, keep, protect)
        home = _moved(track, x.shape[1], *pairs)
        x, sizes = _merged(x, sizes, *pairs)
        return x, {**waiting, **home, "sizes": sizes}
    if reduction["select"] in ("most_distant", "rows"):
        return _take(x, _spread(reduction, seen)), {}
    unit, scores = features / features.norm(dim=-1, keepdim=True), _scores(reduction, seen)
    if reduction["select"] == "topk_anchors":
        return _anchored(reduction, scores, unit, x), {}
    if reduction["select"] == "neighbours":
        scores = _raised(reduction, scores, _scores(reduction, seen["earlier"][0]))
    stay = keep - (dropped == "fuse")
    gone = _going(scores, unit, x.shape[1] - stay, reduction)
    kept = _others(gone, stay)
    after: dict[str, Any] = {**waiting, "sizes": _take(sizes, kept)}
    if "importance" in seen:
        after["importance"] = seen["importance"].gather(1, kept)
    if dropped == "merge":
        if reduction.get("merged"):
            best = scores.gather(1, gone).topk(reduction["merged"], dim=-1).indices.sort(dim=-1).values
            gone = gone.gather(1, best)
        likeness = _take(unit, gone) @ _take(unit, kept).transpose(1, 2)
        likeness[:, :, :protect] = -torch.inf
        into = likeness.argmax(-1)
        after |= _moved(track, x.shape[1], kept, gone, into)
        x, after["sizes"] = _merged(x, sizes, kept, gone, into)
        return x, after
    if dropped == "propagate":
        rows = _take(track["graph"], kept)
        handed = reduction["alpha"] * _take(rows.transpose(1, 2), gone).transpose(1, 2)
        after["graph"] = _take(rows.transpose(1, 2), kept)
        after["sizes"] = after["sizes"] + handed @ _take(sizes, gone)
        return _take(x, kept) + handed @ _take(x, gone), after
    if dropped == "transform":
        likeness = _take(unit, kept)[:, protect:] @ unit[:, protect:].transpose(1, 2)
        shares = (likeness / reduction["temperature"]).softmax(1)
        after["sizes"] = torch.cat([sizes[:, :protect], shares @ sizes[:, protect:]], dim=1)
        mixed = shares @ (x * sizes)[:, protect:] / after["sizes"][:, protect:]
        return torch.cat([x[:, :protect], mixed], dim=1), after
    lost = scores.gather(1, gone)
    fused = (lost / lost.sum(-1, keepdim=True))[:, None] @ _take(x, gone), _take(sizes, gone).sum(1, keepdim=True)
    before = track.get("cache", (x[:, :0], sizes[:, :0]))
    after |= _moved(track, x.shape[1], kept, gone, torch.full_like(gone, stay if dropped == "fuse" else -1))
    if dropped == "exit":
        home = track["home"]
        states = _take(x, home.clamp(min=0))
        leaving = ((home >= 0) & (after["home"] < 0))[..., None]
        after["exits"] = torch.where(leaving, states, track.get("exits", torch.zeros_like(states)))
    elif dropped == "recover":
        likeness = unit[:, protect:] @ _take(unit, kept)[:, protect:].transpose(1, 2)
        made = torch.nn.functional.pad((likeness / reduction["temperature"]).softmax(-1), (protect, 0, protect, 0))
        own = torch.arange(x.shape[1], device=x.device)[None, :, None] == kept[:, None]
        step = torch.where(own.any(-1, keepdim=True), own.to(x.dtype), made)
        after["recovery"] = track["recovery"] @ step if "recovery" in track else step
    x = _take(x, kept)
    if dropped == "fuse":
        x, after["sizes"] = torch.cat([x, fused[0]], dim=1), torch.cat([after["sizes"], fused[1]], dim=1)
    elif dropped == "cache":
        after["cache"] = tuple(torch.cat(pair, dim=1) for pair in zip(before, fused, strict=True))
    return x, after


def _spread(reduction: dict[str, Any], seen: dict[str, Any]) -> torch.Tensor:
    """Return the tokens [batch, keep] that are far from each other, or in the best rows, by rising place."""
    protect, keep = reduction["protect"], reduction["keep"]
    first = torch.arange(protect, device=seen["hidden"].device).expand(len(seen["hidden"]), -1)
    if reduction["select"] == "rows":
        columns = reduction["columns"]
        sums = _scores(reduction, seen)[:, protect:].unflatten(1, (-1, columns)).sum(-1)
        rows = sums.topk((keep - protect) // columns, dim=-1).indices.sort(dim=-1).values
        inside = torch.arange(columns, device=rows.device) + protect
        return torch.cat([first, (rows[..., None] * columns + inside).flatten(1)], dim=1)
    features = seen["keys"].mean(2) if reduction["score"] == "mean_key" else seen["hidden"]
    unit = features[:, protect:] / features[:, protect:].norm(dim=-1, keepdim=True)
    apart, itself = 1 - unit @ unit.transpose(1, 2), torch.eye(unit.shape[1], dtype=torch.bool, device=unit.device)
    lonely, samples = apart.masked_fill(itself, 4.0).amin(-1), torch.arange(len(unit))
    first_scores = _scores(reduction, seen)[:, protect:] if reduction["select"] == "k_center" else lonely
    chosen = [first_scores.argmax(-1)]
    apart = apart.masked_fill(itself, -4.0)
    least = apart[samples, chosen[0]]
    for _ in range(keep - protect - 1):
        chosen.append(least.argmax(-1))
        least = least.minimum(apart[samples, chosen[-1]])
    return torch.cat([first, torch.stack(chosen, dim=1).sort(dim=-1).values + protect], dim=1)


def _raised(reduction: dict[str, Any], scores: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """Return scores raised by 2 at the patches of highest marks and at what touches them above, below and beside."""
    protect, columns = reduction["protect"], reduction["columns"]
    best = marks[:, protect:].topk(reduction["anchors"], dim=-1).indices[..., None]
    places = torch.arange(scores.shape[1] - protect, device=scores.device)
    apart = (places // columns - best // columns).abs() + (places % columns - best % columns).abs()
    near = torch.nn.functional.pad((apart <= 1).any(1), (protect, 0))
    return scores + 2 * near.to(scores.dtype)


def _anchored(reduction: dict[str, Any], scores: torch.Tensor, unit: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the highest tokens as they are, and evenly spaced ones of the others, with the rest merged into them."""
    keep, anchors = reduction["keep"], reduction["anchors"]
    rest = _going(scores, unit, scores.shape[1] - keep + anchors, reduction)
    step = max(rest.shape[1] // anchors, 1)
    at = torch.arange(rest.shape[1], device=x.device)
    chosen = (at % step == 0) & (at < anchors * step)
    centres, gone = rest[:, chosen], rest[:, ~chosen]
    kept = torch.cat([_others(rest, keep - anchors), centres], dim=1).sort(dim=-1).values
    nearest = (_take(unit, gone) @ _take(unit, centres).transpose(1, 2)).argmax(-1)
    into = (kept[:, None] < centres.gather(1, nearest)[..., None]).sum(-1)
    return _merged(x, torch.ones_like(x[..., :1]), kept, gone, into)[0]


def _moved(
    track: dict[str, Any], tokens: int, kept: torch.Tensor, gone: torch.Tensor, into: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return where the first tokens are now stood for, where they are to come back."""
    if "home" not in track:
        return {}
    home, places = track["home"], torch.full((len(kept), tokens), -1, device=kept.device)
    places.scatter_(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept)).scatter_(1, gone, into)
    return {"home": places.gather(1, home.clamp(min=0)).masked_fill(home < 0, -1)}


def _summed(reduction: dict[str, Any], attention: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return what tokens receive in one block, [batch, tokens], for a reduction that adds it up over blocks."""
    if reduction["score"] == "cascade":
        return _columns(attention, mask).sum(1)
    return attention[:, :, : reduction.get("classes") or reduction["protect"]].mean(2).sum(1)


def _columns(attention: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return what all tokens but padding pay to each token, [batch, heads, keys]."""
    return attention.sum(2) if mask is None else (mask.to(attention.dtype)[:, None, None] @ attention)[:, :, 0]


def _begun(hidden: torch.Tensor, mask: torch.Tensor | None, text: bool, returns: bool) -> dict[str, Any]:
    """Return what is known of tokens before any has gone; `mask` as the model is called with."""
    track: dict[str, Any] = {"sizes": hidden.new_ones(*hidden.shape[:2], 1)}
    if returns:
        track["home"] = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
    if text:
        real = torch.ones_like(hidden[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        home = torch.arange(hidden.shape[1], device=hidden.device).where(real, -1)
        track |= {"mask": real, "lengths": real.sum(-1, keepdim=True), "home": home}
    return track


def _reduced_texts(
    reduction: dict[str, Any], seen: dict[str, torch.Tensor], x: torch.Tensor, track: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the same as `_reduced` for texts: counts come from each text's own length, padding never counts."""
    mask, sizes, home, tokens = track["mask"], track["sizes"], track["home"], x.shape[1]
    place = mask.cumsum(-1)
    safe = mask & ((place <= reduction["protect"]) | (place > place[:, -1:] - reduction["closing"]))
    beyond, less = reduction["beyond"], 1000 - reduction["share"]
    counts = track["lengths"] - (track["lengths"] - beyond).clamp(min=0) * less // 1000
    slots = torch.arange(home.shape[1] - max(home.shape[1] - beyond, 0) * less // 1000, device=x.device)
    places, free = torch.arange(tokens, device=x.device), mask & ~safe
    if reduction["select"] == "bipartite":
        features = seen["keys"].mean(2) if reduction["score"] == "mean_key" else _hashed(seen["keys"])
        nearest, partner = _likest(features, free & (places % 2 == 1))
        joining = free & (places % 2 == 0) & (nearest > -2)
        scores = torch.where(joining, -nearest, 8 - places.to(x.dtype) / 4096)
    else:
        scores = _scores(reduction, seen)
    guarded = torch.where(mask, scores.masked_fill(safe, torch.inf), -torch.inf)
    valid = slots < counts
    kept = guarded.topk(len(slots), dim=-1).indices.masked_fill(~valid, tokens).sort(dim=-1).values
    own = (kept[:, :, None] == places).long()
    kept, now = kept.masked_fill(~valid, 0), (own * (slots + 1)[:, None]).sum(1) - 1
    if reduction["dropped"] == "merge":
        if reduction["select"] != "bipartite":
            nearest, partner = _likest(seen["keys"].mean(2), (now >= 0) & ~safe)
            joining = mask & (nearest > -2)
        now = torch.where((now < 0) & joining, now.gather(1, partner), now)
        joins = (now[:, None] == slots[:, None]).to(x.dtype)
        sizes, weighted = joins @ sizes, joins @ (x * sizes)
        sizes = sizes.masked_fill(~valid[..., None], 1.0)
        x = weighted / sizes
    else:
        x, sizes = _take(x, kept), _take(sizes, kept)
    after = {**track, "mask": valid, "sizes": sizes, "home": now.gather(1, home.clamp(min=0)).masked_fill(home < 0, -1)}
    if "importance" in seen:
        after["importance"] = seen["importance"].gather(1, kept)
    return x, after


def _likest(features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for every token the cosine to the target that is most like it, and that target's place."""
    unit, places = features / features.norm(dim=-1, keepdim=True), torch.arange(features.shape[1])
    itself = (places[:, None] == places).to(features.device)
    found = (unit @ unit.transpose(1, 2)).masked_fill(~targets[:, None] | itself, -4.0).max(-1)
    return found.values, found.indices


def _restored(hidden: torch.Tensor, track: dict[str, Any]) -> torch.Tensor:
    """Return hidden states of all first tokens: those of the one that stands for it, or else the mean."""
    if "recovery" in track:
        return torch.as_tensor(track["recovery"] @ hidden)
    if "exits" in track:
        home = track["home"][..., None]
        return torch.where(home < 0, track["exits"], _take(hidden, track["home"].clamp(min=0)))
    weights = track["sizes"] * (track["mask"][..., None].to(hidden.dtype) if "mask" in track else 1)
    mean = (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    home = track["home"]
    return torch.where(home[..., None] < 0, mean, _take(hidden, home.clamp(min=0)))
