"""Blocks of a language model behind which image tokens become fewer, and those that follow.

A reduction at the site `llm_layer` happens behind a whole block. The blocks behind it compute, and cache, fewer tokens;
these keep their positions, and see what they saw of the tokens that are left. Behind the last block every token stands
again, as the nearest one before it that is left, so that outputs have one row for each token of the call.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from compressor.architectures import Family
from compressor.errors import ModelError
from compressor.model.blocks import adopt, ffn_half, past_attention, scaled
from compressor.model.blueprint import Blueprint, Reduction
from compressor.model.llm_prompt import Prompt, PromptCall, PromptTrack
from compressor.model.llm_scores import (
    ASKING,
    LLM_SCORES,
    PromptSeen,
    enough,
    image_alone,
    transition,
    with_spaced,
)
from compressor.model.reduced import Tracks
from compressor.model.token_reduction import TokenTrack
from compressor.model.token_select import Choice, gathered

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Whose blocks take rotary positions from outside, and rotate whole heads."""


class LlmBlock(nn.Module):
    """A block of a language model behind which image tokens become fewer, or one that follows such a block.

    Attributes:
        reduction: behind it; None where there is none.
        stage: how many reductions stand before it.
    """

    def __init__(self, block: nn.Module, family: Family, blueprint: Blueprint, index: int, tracks: Tracks) -> None:
        """Adopt the children of block `index`, which may be a `ShortcutBlock`.

        Args:
            block: the block.
            family: its family.
            blueprint: of the model.
            index: the block's.
            tracks: shared by the blocks of one model.

        Raises:
            ModelError: the family's image tokens cannot be reduced, or the blueprint names what there is not.
        """
        super().__init__()
        check_family("config.json", family)
        adopt(self, block)
        found = blueprint.layer_reductions
        before = [reduction for reduction in found if reduction.block < index]
        self.reduction = next((reduction for reduction in found if reduction.block == index), None)
        self.stage, self.left = len(before), before[-1].keep if before else found[0].count
        self.first = index == 0 or not blueprint.in_prompts_at(index - 1)
        self.restores = index == len(blueprint.shapes.layers) - 1
        reads = (r for r in found if r.score == "transitions" and index in (r.block, *r.also))
        self.adds = index + 1 if any(reads) else 0  # a number, as no other block's nodes may be copied for its own
        self.layer_idx, self._family, self._head_dim = index, family, blueprint.shapes.head_dim
        self.tracks = tracks
        if self.reduction is not None:
            check_known(self.reduction)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        track: TokenTrack | None = None,
        choice: Choice | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the block on hidden_states [batch, tokens, width]; return [batch, tokens that go on, width].

        Args:
            hidden_states: the stream.
            track: of the tokens; None: as the block before has left it.
            choice: of the tokens; None: by what this block sees.
            **kwargs: of the stock block.
        """
        alone = track is not None
        if track is None:
            track = self._begun(hidden_states) if self.first else self.tracks.last
        assert isinstance(track, PromptTrack), "begun by a block of this kind"
        middle, seen = self._attend(hidden_states, track, kwargs, look=not alone)
        out = ffn_half(self, self._family, middle)
        if alone:
            return self.reduced(out, choice)
        track = self._added(track, hidden_states, out)
        choice = self._choose(seen, track)
        if choice is not None:
            track = track.after(choice.kept)
        self.tracks.last = track
        out = self.reduced(out, choice)
        if not self.restores:
            return out
        assert track.home is not None, "begun with it"
        return gathered(out, track.home)

    def start(self, hidden: Tensor, mask: Tensor | None) -> PromptTrack:
        """Return the track of tokens [batch, tokens, width] before any has gone; `mask` as the model is called with."""
        return PromptTrack.begin(hidden, mask=mask)

    def look(self, hidden_states: Tensor, *, track: TokenTrack, **kwargs: Any) -> tuple[Choice | None, PromptTrack]:
        """Return which tokens of a call stay, None where all do, and the track behind the block."""
        assert isinstance(track, PromptTrack), "begun by a block of this kind"
        if self.reduction is None and not self.adds:
            return None, track
        middle, seen = self._attend(hidden_states, track, kwargs, look=True)
        if self.adds:
            track = self._added(track, hidden_states, ffn_half(self, self._family, middle))
        choice = self._choose(seen, track)
        return choice, track if choice is None else track.after(choice.kept)

    def reduced(self, out: Tensor, choice: Choice | None) -> Tensor:
        """Return the block's output [batch, tokens, width] after a choice."""
        return out if choice is None else gathered(out, choice.kept)

    def _added(self, track: PromptTrack, before: Tensor, after: Tensor) -> PromptTrack:
        """Return the track with how much the block changes each token [batch, tokens, width], where that is summed."""
        if not self.adds:
            return track
        change, sums = transition(before, after), track.transitions
        return replace(track, transitions=change if sums is None else sums + change)

    def _begun(self, hidden: Tensor) -> PromptTrack:
        past = self.tracks.past
        return PromptTrack.begin(hidden, past=past)

    def _choose(self, seen: PromptSeen | None, track: PromptTrack) -> Choice | None:
        """Return which tokens stay by what has been seen; None where the block has no reduction, or all do."""
        reduction = self.reduction
        if reduction is None or seen is None:
            return None
        seen = replace(seen, transitions=track.transitions)
        scores = LLM_SCORES[reduction.score](seen)
        going: int | Tensor = seen.left - reduction.keep
        if reduction.mass and scores.is_meta:  # nothing is known of them; equal ones need the most tokens
            going = seen.left - max(math.ceil(reduction.mass * seen.left), reduction.keep)
        elif reduction.mass:
            going = seen.left - enough(seen, scores, reduction.mass).clamp(min=reduction.keep)
        if reduction.spaced:
            scores = with_spaced(scores, seen.places, seen.left, reduction.spaced)
        scores = image_alone(seen, scores).expand(track.sizes.shape[0], -1)
        kept = self._prompt(track).highest(reduction, scores, going)
        return Choice(kept, kept[:, :0])

    def _prompt(self, track: PromptTrack) -> Prompt:
        traced: Prompt | None = self.tracks.prompt
        if traced is not None:
            return traced
        assert track.home is not None, "begun with it"
        return PromptCall(track.past, track.home.shape[1], self.tracks.mask if track.mask is None else track.mask)

    def _attend(
        self, hidden: Tensor, track: PromptTrack, kwargs: Any, *, look: bool
    ) -> tuple[Tensor, PromptSeen | None]:
        """Return the stream behind attention [batch, tokens, width] and, to `look`, what a reduction is made by."""
        attention, module = self._family.attention, self.get_submodule(self._family.attention.module)
        cache = kwargs.get("past_key_values")
        given = {**kwargs, **self._given(track, kwargs, cache)}
        projected: list[Tensor] = []
        handles = [
            self.get_submodule(slot.path).register_forward_hook(lambda _, __, out: projected.append(out))
            for slot in (attention.query, attention.key)
        ]
        try:
            attended = module(self.get_submodule(attention.norm)(hidden), **given)[0]
        finally:
            for handle in handles:
                handle.remove()
        middle = past_attention(self, hidden) + scaled(self, attention.scale, attended)
        reduction = self.reduction
        if reduction is None or not look or not self._prompt(track).holds(reduction):
            return middle, None
        places = torch.arange(hidden.shape[1], device=hidden.device) - self._prompt(track).first(reduction)
        asking, found = ASKING.get(reduction.score), None
        if asking is not None:
            turned = reduction.score != "unturned_attn"
            query, key = projected
            found = self._attention(query, key, given, last=asking == "last", turned=turned)
        return middle, PromptSeen(places, self.left, found)

    def _given(self, track: PromptTrack, kwargs: Any, cache: Cache | None) -> dict[str, Any]:
        """Return those arguments of the stock attention that are others behind a reduction."""
        if self.stage == 0:
            return {}
        given: dict[str, Any] = {
            "position_embeddings": tuple(track.of_those_left(table) for table in kwargs["position_embeddings"])
        }
        positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
        if positions is not None and track.places is not None:
            given["position_ids"] = positions.expand(track.places.shape[0], -1).gather(1, track.places)
        if mask is not None:
            past = 0 if cache is None else int(cache.get_seq_length(self.layer_idx))
            given["attention_mask"] = track.mask_of_those_left(mask, past)
        return given

    def _attention(self, query: Tensor, key: Tensor, given: Any, *, last: bool, turned: bool) -> Tensor:
        """Return the probabilities [batch, heads, asking, tokens] that projected queries give to the call's keys.

        Those in the cache count, too, but where positions do not: they are turned already.
        """
        module = self.get_submodule(self._family.attention.module)
        cos, sin = given["position_embeddings"]
        tokens = query.shape[1]
        if last:
            query = query[:, -1:]
        queries, keys = self._by_head(query, module, "q_norm"), self._by_head(key, module, "k_norm")
        if turned:
            queries = _rotated(queries, cos[:, -query.shape[1] :], sin[:, -query.shape[1] :])
            cache = given.get("past_key_values")
            held = None if cache is None else _joined_keys(cache, self.layer_idx)
            keys = _rotated(keys, cos, sin) if held is None else held
        batch, heads, asking, size = queries.shape
        grouped = queries.reshape(batch, keys.shape[1], -1, asking, size)  # query heads by the key head that they share
        scores = (grouped @ keys.unsqueeze(2).transpose(3, 4) * size**-0.5).reshape(batch, heads, asking, -1)
        if not last:
            now = torch.arange(tokens, device=scores.device)
            past = scores.shape[-1] - tokens
            seen = torch.arange(scores.shape[-1], device=scores.device) <= now.unsqueeze(1) + past
            scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)
        return torch.as_tensor(scores.softmax(-1)[..., scores.shape[-1] - tokens :])

    def _by_head(self, projected: Tensor, module: nn.Module, norm: str) -> Tensor:
        """Return [batch, heads, tokens, head width] of [batch, tokens, width], normed where the family norms heads."""
        found = projected.reshape(*projected.shape[:2], -1, self._head_dim)
        normed = getattr(module, norm, None)
        return (found if normed is None else torch.as_tensor(normed(found))).transpose(1, 2)


def _joined_keys(cache: Any, layer: int) -> Tensor:
    """Return the rotated keys of past and new tokens, [batch, heads, all tokens, width], that a cache now holds."""
    joined = getattr(cache, "joined_keys", None)
    return torch.as_tensor(joined() if joined is not None else cache.layers[layer].keys)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads [batch, heads, tokens, width] turned by their positions; cos and sin are [batch, tokens, width]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)


def check_known(reduction: Reduction) -> None:
    """Raise ModelError where a reduction names what there is not."""
    known = {"score": tuple(LLM_SCORES), "select": ("topk",), "dropped": ("drop",)}
    for key, names in known.items():
        if getattr(reduction, key) not in names:
            raise ModelError(
                f"config.json: a reduction of image tokens has {key} {getattr(reduction, key)!r};"
                f" allowed: {', '.join(names)}",
                hint="The model was written by another version of compressor, or edited.",
            )
    if not 0 <= reduction.keep < reduction.count or reduction.start < 0:
        raise ModelError(
            f"config.json: a reduction keeps {reduction.keep} of {reduction.count} image tokens from position"
            f" {reduction.start} on",
            hint="The model was written by another version of compressor, or edited.",
        )


def check_family(what: str, family: Family, config: Any = None) -> None:
    """Raise ModelError, in the name of `what`, where image tokens cannot become fewer inside a language model.

    Args:
        what: asks.
        family: of the model.
        config: of the model; None where it was checked before.
    """
    if family.name not in FAMILIES:
        raise ModelError(
            f"{what}: family {family.name}: image tokens become fewer inside a language model only of the families"
            f" {', '.join(FAMILIES)}",
            hint="Take the language part of a LLaVA model (model.part: language).",
        )
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        raise ModelError(
            f"{what}: config.json: sliding_window is {window}: a window counts tokens that are no longer there",
            hint="Models without a window are covered.",
        )
