"""Prompts of a language model in which image tokens become fewer: where they stand, and which tokens are left.

The image tokens of a prompt have static positions, `start` to `start + count`. A call of the model that holds all of
them and at least one token behind reduces them; any other call (a decoding step, a text that ends before) drops none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.model.blueprint import Reduction
from compressor.model.token_reduction import TokenTrack
from compressor.model.token_select import gathered


@dataclass(frozen=True)
class PromptTrack(TokenTrack):
    """What is known of the tokens of one call of a language model, wherever they now stand.

    Every first token is stood for by the nearest one before it that is left (`home`), or by the first one.

    Attributes:
        places: of the tokens that are left, among the first ones, [batch, tokens]; None where all are.
        past: how many tokens the key-value cache held before the call.
        transitions: what earlier blocks have added up of each token, [batch, tokens]; None where none has.
    """

    places: Tensor | None = None
    past: int = 0
    transitions: Tensor | None = None

    @classmethod
    def begin(cls, hidden: Tensor, *, mask: Tensor | None = None, past: int = 0) -> PromptTrack:
        """Return the track of tokens [batch, tokens, width] of which none has gone; `mask` as of the model's call."""
        places = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        real = None if mask is None else mask.bool()
        return cls(torch.ones_like(hidden[..., :1]), mask=real, home=places, past=past)

    def after(self, kept: Tensor) -> PromptTrack:
        """Return the track of the tokens at the places `kept` [batch, n] of those that are there, by rising place."""
        assert self.home is not None, "begun with it"
        now = torch.arange(self.sizes.shape[1], device=kept.device)
        nearest = ((kept.unsqueeze(1) <= now.unsqueeze(1)).sum(-1) - 1).clamp(min=0)  # [batch, tokens now]
        mask, sums = self.mask, self.transitions
        return replace(
            self,
            sizes=torch.ones_like(kept, dtype=self.sizes.dtype).unsqueeze(-1),
            home=nearest.gather(1, self.home),
            places=kept if self.places is None else self.places.gather(1, kept),
            mask=None if mask is None else mask.gather(1, kept),
            transitions=None if sums is None else sums.gather(1, kept),
        )

    def of_those_left(self, values: Tensor) -> Tensor:
        """Return values of the first tokens, [batch or 1, first tokens, width], of those that are left."""
        if self.places is None:
            return values
        return gathered(values.expand(self.places.shape[0], -1, -1), self.places)

    def mask_of_those_left(self, mask: Tensor, past: int) -> Tensor:
        """Return a mask [batch, 1, tokens, all tokens] as a layer needs it whose cache held `past` before the call."""
        tokens, total = mask.shape[-2:]
        if self.places is None:  # what went in an earlier call stood before all that any mask hides
            return mask[..., total - past - tokens :]
        before = torch.arange(total - tokens, device=mask.device)
        masks = mask.expand(len(self.places), -1, -1, -1)
        rows = [
            one[:, at][..., torch.cat([before, before.numel() + at])]
            for one, at in zip(masks, self.places, strict=True)
        ]
        return torch.stack(rows)


class Prompt(Protocol):
    """One call of a language model: whether it holds the image tokens, and the choice among them."""

    def holds(self, reduction: Reduction) -> bool:
        """Tell whether tokens may go in the call."""

    def first(self, reduction: Reduction) -> int | Tensor:
        """Return the place of the first image token in the call."""

    def highest(self, reduction: Reduction, scores: Tensor, going: int | Tensor) -> Tensor:
        """Return the places of all but `going` tokens, those of highest score [batch, tokens], by rising place."""


@dataclass(frozen=True)
class PromptCall:
    """A call of a language model in PyTorch.

    Attributes:
        past: tokens in the key-value cache.
        length: new tokens.
        mask: as the model is called with, [batch, past + length], 0 at padding; None where nothing is padded.
    """

    past: int
    length: int
    mask: Tensor | None = None

    def holds(self, reduction: Reduction) -> bool:
        """Tell whether the call holds all image tokens and one token behind.

        Raises:
            ModelError: it does, and tokens are padded: image tokens then have other places.
        """
        end = reduction.start + reduction.count
        if self.past > reduction.start or self.past + self.length <= end:
            return False
        if self.mask is not None and self.mask.dim() == 2 and not bool(self.mask.all()):
            raise ModelError(
                "image tokens become fewer inside the language model, and the prompts are padded",
                hint="Give prompts of one length together, or one by one: image tokens have the same places in all.",
            )
        return True

    def first(self, reduction: Reduction) -> int:
        """Return the place of the first image token in the call."""
        return reduction.start - self.past

    def highest(self, reduction: Reduction, scores: Tensor, going: int | Tensor) -> Tensor:
        """Return the places of all but `going` tokens, those of highest score [batch, tokens], by rising place."""
        return scores.topk(scores.shape[1] - int(going), dim=-1, sorted=False).indices.sort(dim=-1).values
