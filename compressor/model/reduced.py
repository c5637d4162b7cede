"""Blocks in which tokens become fewer, or weigh as many as they stand for.

A reduction happens between attention and FFN: what the attention that has just run shows tells tokens apart. What must
be known of tokens in later blocks is their `TokenTrack`. Inside a model the blocks hand it on by themselves; in the
block walk, where each block runs alone, it comes with the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.architectures import Family
from compressor.errors import ModelError
from compressor.model.blocks import adopt, ffn_half, past_attention, scaled
from compressor.model.blueprint import Blueprint, Reduction, in_order
from compressor.model.token_graph import token_graph
from compressor.model.token_reduction import TokenTrack, check_known, choose, reduce
from compressor.model.token_scores import ATTENTIVE, Seen, summed
from compressor.model.token_select import Choice

Tell = Callable[[Reduction, Choice, Seen], None]
"""Is told of a choice and of what it was made by."""


class Tracks:
    """Where the blocks of one model leave the track for the next, and what some have seen; of the last forward pass.

    `tell` is told of every choice, where somebody wants to know. `past` is how many tokens the key-value cache holds
    that the model is called with, and `prompt` stands for the call while a graph of a language model is traced
    (`compressor.model.llm_prompt.Prompt`).
    """

    def __init__(self) -> None:
        """Start with none."""
        self.last: TokenTrack | None = None
        self.seen: dict[int, Seen] = {}
        self.tell: Tell | None = None
        self.mask: Tensor | None = None
        self.pixels: Tensor | None = None
        self.past = 0
        self.prompt: Any = None

    def hear(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the mask and the cache that the model below its head is called with: a hook to be called before it.

        Blocks are given what attention makes of it, which is nothing while a graph is traced.
        """
        self.mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        cache = kwargs.get("past_key_values")
        self.past = 0 if cache is None else int(cache.get_seq_length())

    def see(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the pixels that the model is called with: a hook to be called before it."""
        self.pixels = kwargs.get("pixel_values", args[0] if args else None)


class ReducedBlock(nn.Module):
    """A block with a reduction, with attention that knows the sizes of tokens, that sums it up or shows it.

    In a text, whatever stands behind the first reduction is one, as it must know what is padding by now.
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
            ModelError: the family's blocks cannot be reduced, or the blueprint names what there is not.
        """
        super().__init__()
        check_reducible("config.json", family)
        adopt(self, block)
        self.reduction = blueprint.reduction_at(index)
        self.biased = blueprint.bias_at(index)
        self.sums = blueprint.sums_at(index)
        output = blueprint.output_reduction
        self.shown_for = output if blueprint.shown_at(index) else None
        self.first = not any(blueprint.reduced_at(before) for before in range(index))
        self.text = family.inputs == "tokens"
        self.restores = blueprint.restores_at(index)
        self.returns = any(reduction.returns for reduction in blueprint.reductions)
        self._family, self._index, self._head_dim = family, index, blueprint.shapes.head_dim
        self.tracks = tracks
        if self.reduction is not None:
            check_known(self.reduction)

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        track: TokenTrack | None = None,
        choice: Choice | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the block on hidden_states [batch, tokens, width]; return [batch, tokens that go on, width].

        Args:
            hidden_states: the stream.
            *args: of the stock block.
            track: of the tokens; None: as the block before has left it.
            choice: of the tokens; None: by what this block sees.
            **kwargs: of the stock block.
        """
        alone = track is not None
        if track is None:
            track = self.start(hidden_states, self.tracks.mask) if self.first else self.tracks.last
            assert track is not None, "a block before this one has left it"
        stream, seen = self._attend(hidden_states, track, args, kwargs)
        if self.shown_for is not None and not alone:
            self.tracks.seen[self._index] = seen
        stream, _, track = self._go_on(hidden_states, stream, seen, track, choice)
        out = ffn_half(self, self._family, stream)
        if alone:
            return out
        self.tracks.last = track
        return track.restored(out) if self.restores else out

    def start(self, hidden: Tensor, mask: Tensor | None) -> TokenTrack:
        """Return the track of tokens [batch, tokens, width] before any has gone; `mask` as the model is called with."""
        return TokenTrack.start(hidden, text=self.text, mask=mask, returns=self.returns)

    def look(
        self, hidden_states: Tensor, *args: Any, track: TokenTrack, **kwargs: Any
    ) -> tuple[Choice | None, TokenTrack]:
        """Return which tokens of a call go, None where the block has no reduction, and the track behind the block."""
        stream, seen = self._attend(hidden_states, track, args, kwargs)
        _, choice, track = self._go_on(hidden_states, stream, seen, track, None)
        return choice, track

    def combine(self, choice: Choice, stream: Tensor, track: TokenTrack) -> Tensor:
        """Return the stream between attention and FFN [batch, tokens, width] after a choice."""
        assert self.reduction is not None
        return reduce(self.reduction, choice, stream, track)[0]

    def _go_on(
        self, hidden: Tensor, stream: Tensor, seen: Seen, track: TokenTrack, choice: Choice | None
    ) -> tuple[Tensor, Choice | None, TokenTrack]:
        """Return the stream between attention and FFN, behind the reduction; the choice; the track."""
        reduction = self.reduction
        if self.sums is not None:
            track = replace(track, importance=seen.importance)
        if reduction is None:
            return stream, None, track
        if choice is None:
            if reduction.dropped == "propagate" and track.graph is None:
                track = replace(track, graph=token_graph(hidden, reduction.protect, reduction.columns))
            choice = choose(reduction, seen, track)
        if self.tracks.tell is not None:
            self.tracks.tell(reduction, choice, seen)
        stream, track = reduce(reduction, choice, stream, track)
        return stream, choice, track

    def _attend(self, hidden: Tensor, track: TokenTrack, args: Any, kwargs: Any) -> tuple[Tensor, Seen]:
        """Return the stream behind attention [batch, tokens, width] and what it has shown."""
        attention, post = self._family.attention, self._family.residual == "post"
        bias = self._bias(track)
        normed = hidden if post else self.get_submodule(attention.norm)(hidden)
        asking = [found.score for found in (self.reduction, self.shown_for) if found is not None]
        if self.sums is not None or any(score in ATTENTIVE for score in asking):
            attended, seen = self._open_attention(normed, bias, track)
        else:
            attended, seen = self._stock_attention(normed, bias, track, args, kwargs)
            if post:  # the module adds and norms by itself
                return attended, seen
        stream = past_attention(self, hidden) + scaled(self, attention.scale, attended)
        return self.get_submodule(attention.norm)(stream) if post else stream, seen

    def _bias(self, track: TokenTrack) -> Tensor | None:
        """Return what is added to the scores of the keys, [batch, 1, 1, tokens]."""
        bias = track.sizes.log().squeeze(2) if self.biased else None
        if track.mask is not None:
            bias = torch.zeros_like(track.sizes[..., 0]) if bias is None else bias
            bias = torch.where(track.mask, bias, torch.finfo(bias.dtype).min)
        return None if bias is None else bias[:, None, None]

    def _stock_attention(
        self, normed: Tensor, bias: Tensor | None, track: TokenTrack, args: Any, kwargs: Any
    ) -> tuple[Tensor, Seen]:
        attention = self._family.attention
        if bias is not None:
            # log(size) on a key's scores: as if each of the tokens that it stands for were still there;
            # in place of the mask, which a stock block passes first: images have none, that of texts is in the bias
            args, kwargs = ((bias, *args[1:]), kwargs) if args else (args, {**kwargs, "attention_mask": bias})
        keys: list[Tensor] = []
        module = self.get_submodule(attention.module)
        handle = self.get_submodule(attention.key.path).register_forward_hook(lambda _, __, out: keys.append(out))
        try:
            attended = module(normed, *args, **kwargs)[0]
        finally:
            handle.remove()
        return attended, Seen(self._by_head(keys[0]), mask=track.mask)

    def _open_attention(self, normed: Tensor, bias: Tensor | None, track: TokenTrack) -> tuple[Tensor, Seen]:
        """Compute what the stock module does in plain steps: its kernels do not show the probabilities."""
        attention = self._family.attention
        query, key, value = (
            self._by_head(self.get_submodule(slot.path)(normed))
            for slot in (attention.query, attention.key, attention.value)
        )
        scores = query.transpose(1, 2) @ key.transpose(1, 2).transpose(2, 3) * self._head_dim**-0.5
        probabilities = (scores if bias is None else scores + bias).softmax(-1)
        heads = (probabilities @ value.transpose(1, 2)).transpose(1, 2)
        importance = None
        if self.sums is not None:
            importance = summed(self.sums.score, probabilities, self.sums.classes or self.sums.protect, track.mask)
            importance = importance if track.importance is None else importance + track.importance
        written = self.get_submodule(attention.output)(heads.reshape(*normed.shape[:2], -1))
        wanted = self.reduction or self.shown_for
        asking = 1 if wanted is None else wanted.classes or wanted.protect
        return written, Seen(key, asking, value, probabilities, importance, mask=track.mask)

    def _by_head(self, projected: Tensor) -> Tensor:
        """Return [batch, tokens, heads, head width] of [batch, tokens, width]."""
        return projected.reshape(*projected.shape[:2], -1, self._head_dim)


def reductions_of(model: nn.Module) -> list[Reduction]:
    """Return the reductions of a model, in the order in which they happen."""
    found = [module.reduction for module in model.modules() if isinstance(getattr(module, "tracks", None), Tracks)]
    return in_order([reduction for reduction in found if isinstance(reduction, Reduction)])


@contextmanager
def told(model: nn.Module, tell: Tell) -> Iterator[None]:
    """While entered, `tell` hears of every choice of tokens in `model`, block by block."""
    tracks = [tracks for module in model.modules() if isinstance(tracks := getattr(module, "tracks", None), Tracks)]
    for each in tracks:
        each.tell = tell
    try:
        yield
    finally:
        for each in tracks:
            each.tell = None


def check_reducible(what: str, family: Family) -> None:
    """Raise ModelError, in the name of `what`, where the blocks of a family cannot be reduced."""
    image = family.residual == "pre" and bool(family.leading_tokens)
    text = family.residual == "post" and family.inputs == "tokens" and "text-generation" not in family.tasks
    if not (image or text) or family.attention.layout != "separate":
        raise ModelError(
            f"{what}: family {family.name}: tokens can be reduced only in image models with a class token and norms"
            " before attention and FFN, and in text encoders with norms behind them",
            hint="Covered are vit, deit, dinov2 with and without registers, the image towers of CLIP and LLaVA, and"
            " bert (MiniLM). A decoder or another text tower finds tokens by their places, which do not go along yet.",
        )
