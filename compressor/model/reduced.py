"""Blocks in which tokens become fewer, or weigh as many as they stand for.

A reduction happens between attention and FFN: the keys of the attention that has just run tell tokens apart. What must
be known of tokens in later blocks is their `TokenTrack`. Inside a model the blocks hand it on by themselves; in the
block walk, where each block runs alone, it comes with the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.architectures import FAMILIES, Family
from compressor.errors import ModelError
from compressor.model.blocks import adopt, ffn_half, past_attention, scaled
from compressor.model.blueprint import Blueprint, Reduction
from compressor.model.token_merge import COMBINATIONS
from compressor.model.token_scores import SCORES, Seen
from compressor.model.token_select import SELECTS, Choice


@dataclass(frozen=True)
class TokenTrack:
    """What is known of the tokens of a batch, wherever they now stand.

    Attributes:
        sizes: how many of the first tokens each token stands for, [batch, tokens, 1].
    """

    sizes: Tensor

    @classmethod
    def start(cls, hidden: Tensor) -> TokenTrack:
        """Return the track of tokens [batch, tokens, width] of which none has gone."""
        return cls(torch.ones_like(hidden[..., :1]))


class Tracks:
    """Where the blocks of one model leave the track for the next; holds that of the last forward pass."""

    def __init__(self) -> None:
        """Start with none."""
        self.last: TokenTrack | None = None


class ReducedBlock(nn.Module):
    """A pre-norm block with a reduction, with attention that knows the sizes of tokens, or with both."""

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
        self.first = all(reduction.block >= index for reduction in blueprint.reductions)
        self._family, self._tracks, self._head_dim = family, tracks, blueprint.shapes.head_dim
        if self.reduction is not None:
            _check_known(self.reduction)

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
            track = TokenTrack.start(hidden_states) if self.first else self._tracks.last
            assert track is not None, "a block before this one has left it"
        stream, keys = self._attend(hidden_states, track, args, kwargs)
        if self.reduction is not None:
            choice = choice or self._choose(keys)
            stream, track = self.combine(choice, stream, track)
        if not alone:
            self._tracks.last = track
        return ffn_half(self, self._family, stream)

    def choose(self, hidden_states: Tensor, *args: Any, track: TokenTrack, **kwargs: Any) -> Choice:
        """Return which tokens of a call go; for a block with a reduction."""
        _, keys = self._attend(hidden_states, track, args, kwargs)
        return self._choose(keys)

    def combine(self, choice: Choice, stream: Tensor, track: TokenTrack) -> tuple[Tensor, TokenTrack]:
        """Return the stream between attention and FFN [batch, tokens, width] and the track after a choice."""
        assert self.reduction is not None
        stream, sizes = COMBINATIONS[self.reduction.dropped](choice, stream, track.sizes)
        return stream, TokenTrack(sizes)

    def _choose(self, keys: Tensor) -> Choice:
        assert self.reduction is not None
        reduction = self.reduction
        return SELECTS[reduction.select](SCORES[reduction.score](Seen(keys)), reduction.keep, reduction.protect)

    def _attend(self, hidden: Tensor, track: TokenTrack, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the stream behind attention [batch, tokens, width] and the keys [batch, tokens, heads, head width]."""
        attention = self._family.attention
        if self.biased:
            # log(size) on a key's scores: as if each of the tokens that it stands for were still there
            # in place of the mask, which a stock block passes first and which images do not have
            args, kwargs = args[1:], {**kwargs, "attention_mask": track.sizes.log().reshape(hidden.shape[0], 1, 1, -1)}
        seen: list[Tensor] = []
        module = self.get_submodule(attention.module)
        handle = self.get_submodule(attention.key.path).register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            attended = module(self.get_submodule(attention.norm)(hidden), *args, **kwargs)[0]
        finally:
            handle.remove()
        keys = seen[0].reshape(*hidden.shape[:2], -1, self._head_dim)
        return past_attention(self, hidden) + scaled(self, attention.scale, attended), keys


def check_reducible(what: str, family: Family) -> None:
    """Raise ModelError, in the name of `what`, where the blocks of a family cannot be reduced."""
    if not _reducible(family):
        raise ModelError(
            f"{what}: family {family.name}: tokens can be reduced only in image models with norms before attention and "
            "FFN",
            hint=f"Covered are {', '.join(known.name for known in FAMILIES if _reducible(known))}.",
        )


def _reducible(family: Family) -> bool:
    return family.residual == "pre" and family.leading_tokens > 0 and family.attention.layout == "separate"


def _check_known(reduction: Reduction) -> None:
    for key, known in (("score", SCORES), ("select", SELECTS), ("dropped", COMBINATIONS)):
        name = getattr(reduction, key)
        if name not in known:
            raise ModelError(
                f"config.json: a token reduction has {key} {name!r}; allowed: {', '.join(known)}",
                hint="The model was written by another version of compressor, or edited.",
            )
