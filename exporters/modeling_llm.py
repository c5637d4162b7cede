"""The part of the modelling file in which image tokens become fewer inside a language model.

Self-contained like the rest of that file (`compressor.exporters.modeling_tokens`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compressor.exporters.modeling_tokens import _take


# --- from here on, a part of the modelling file ---
def _turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return heads [batch, heads, tokens, width] turned by their positions."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def _prompt_attention(
    module: Any, head_dim: int, projected: list[torch.Tensor], given: dict[str, Any], layer: int, score: str
) -> torch.Tensor:
    """Return the probabilities [batch, heads, asking, tokens] that the last token, or each, gives to those of the call.

    Args:
        module: of the attention.
        head_dim: width of a head.
        projected: queries and keys that are not turned, [batch, tokens, width].
        given: what the module is called with.
        layer: index of the layer.
        score: what reads them.
    """
    cos, sin = given["position_embeddings"]
    tokens, last = projected[0].shape[1], score in ("last_attn", "unturned_attn")
    heads = [values.unflatten(-1, (-1, head_dim)) for values in projected]
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    asking, keys = ((v if n is None else n(v)).transpose(1, 2) for v, n in zip(heads, norms, strict=True))
    if score != "unturned_attn":
        asking, cache = _turned(asking, cos, sin), given.get("past_key_values")
        keys = _turned(keys, cos, sin) if cache is None else cache.layers[layer].keys
    asking = asking[:, :, -1:] if last else asking
    keys = keys.repeat_interleave(asking.shape[1] // keys.shape[1], dim=1)
    scores = asking @ keys.transpose(2, 3) * head_dim**-0.5
    if not last:
        now = torch.arange(tokens, device=keys.device)[:, None] + keys.shape[2] - tokens
        scores = scores.masked_fill(torch.arange(keys.shape[2], device=keys.device) > now, -torch.inf)
    return torch.as_tensor(scores.softmax(-1)[..., -tokens:])


def _transition(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return how much a block changes each token, [batch, tokens]."""
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1, eps=0.0)
    return torch.as_tensor(after.norm(dim=-1) / before.norm(dim=-1) * (1 - cosine))


def _image_scores(reduction: dict[str, Any], seen: dict[str, Any], left: int) -> torch.Tensor:
    """Return how much each of `left` image tokens matters, [batch or 1, left]."""
    name, image = reduction["score"], slice(seen["first"], seen["first"] + left)
    if name == "random":
        prime, at = 2**31 - 1, torch.arange(1, left + 1, device=seen["out"].device)[None]
        return ((at * at % prime * at + 7919 * at) % prime * 16807 % prime).double() / prime
    graph = seen["attention"].mean(1)  # [batch, asking, tokens]
    if name == "page_rank":
        ranks = graph.mean(1, keepdim=True)
        return torch.as_tensor((ranks @ graph @ graph)[:, 0, image])
    if name == "transitions":
        parts = (seen["transitions"][:, image], graph[:, image.stop :, image].sum(1))
        return torch.stack([part / part.sum(-1, keepdim=True) for part in parts]).mean(0)
    return torch.as_tensor(graph[:, -1, image])


def _kept_of_prompt(reduction: dict[str, Any], seen: dict[str, Any], left: int) -> torch.Tensor:
    """Return the places [batch, n] of the tokens that stay: all text, and the image tokens of highest score."""
    out, first, count = seen["out"], seen["first"], reduction["keep"]
    scores, spaced = _image_scores(reduction, seen, left), reduction.get("spaced", 0)
    if reduction.get("mass"):
        ranked = scores.sort(dim=-1, descending=True).values
        short = ranked.cumsum(-1) < reduction["mass"] * ranked.sum(-1, keepdim=True)
        count = min(max(int((short.sum(-1) + 1).amax()), count), left)
    if spaced:
        places = torch.arange(left, device=out.device)
        scores = scores.masked_fill(places * spaced % left < spaced, torch.inf)
    best = scores.topk(count, dim=-1).indices.sort(dim=-1).values + first
    batch, tokens = out.shape[:2]
    before, behind = torch.arange(first), torch.arange(first + left, tokens)
    parts = (before[None].to(best), best, behind[None].to(best))
    return torch.cat([part.expand(batch, -1) for part in parts], dim=1)


def _begin_prompt(call: dict[str, Any], hidden: torch.Tensor) -> None:
    """Note that all tokens [batch, tokens, width] of a call are there."""
    home = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
    call.update(places=None, home=home, length=hidden.shape[1], transitions=None)


def _end_prompt(call: dict[str, Any], out: torch.Tensor) -> torch.Tensor:
    """Return hidden states with a row for each token of the call: that of the nearest one before it that is left."""
    return _take(out, call["home"])


def _go_on(call: dict[str, Any], kept: torch.Tensor, tokens: int) -> None:
    """Note which of the tokens that are there are left."""
    now = torch.arange(tokens, device=kept.device)
    nearest = ((kept[:, None] <= now[:, None]).sum(-1) - 1).clamp(min=0)
    call["home"] = nearest.gather(1, call["home"])
    call["places"] = kept if call["places"] is None else call["places"].gather(1, kept)
    if call["transitions"] is not None:
        call["transitions"] = call["transitions"].gather(1, kept)


def _holds_image(call: dict[str, Any], reduction: dict[str, Any]) -> bool:
    """Tell whether a call holds all image tokens and one token behind."""
    start, mask = reduction.get("start", 0), call["mask"]
    if call["past"] > start or call["past"] + call["length"] <= start + reduction["count"]:
        return False
    if mask is not None and mask.dim() == 2 and not bool(mask.all()):
        raise ValueError("image tokens become fewer in this model: prompts must not be padded; give them one by one")
    return True


def _given_to_fewer(call: dict[str, Any], kwargs: dict[str, Any], past: int) -> dict[str, Any]:
    """Return those arguments of the stock attention that are others where tokens are fewer.

    `past` is the length of the layer's cache.
    """
    places, mask = call["places"], kwargs.get("attention_mask")
    given: dict[str, Any] = {}
    if places is not None:
        tables = (table.expand(len(places), -1, -1) for table in kwargs["position_embeddings"])
        given["position_embeddings"] = tuple(_take(table, places) for table in tables)
        if kwargs.get("position_ids") is not None:
            given["position_ids"] = kwargs["position_ids"].expand(len(places), -1).gather(1, places)
    if mask is None:
        return given
    tokens, total = mask.shape[-2:]
    if places is None:
        return {"attention_mask": mask[..., total - past - tokens :], **given}
    before = torch.arange(total - tokens, device=mask.device)
    pairs = zip(mask.expand(len(places), -1, -1, -1), places, strict=True)
    given["attention_mask"] = torch.stack([m[:, at][..., torch.cat([before, len(before) + at])] for m, at in pairs])
    return given


def _hear_prompt(base: nn.Module) -> dict[str, Any]:
    """Return what is known of the call of a model below its head, from now on told at every call."""
    call: dict[str, Any] = {"past": 0, "mask": None}

    def hear(_: nn.Module, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("past_key_values")
        call["mask"] = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        call["past"] = 0 if cache is None else int(cache.get_seq_length())

    base.register_forward_pre_hook(hear, with_kwargs=True)
    return call
