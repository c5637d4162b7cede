"""Tokens that leave an encoder: fewer of them go on to what reads them all, such as a projector and a language model.

A reduction at the site `output` stands behind the last block. What it reads of attention it reads from one block, which
may be an earlier one; that block leaves what it has seen for it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from compressor.architectures import Family
from compressor.errors import ModelError
from compressor.model.blueprint import Reduction
from compressor.model.reduced import Tracks
from compressor.model.token_pixels import patch_entropy
from compressor.model.token_reduction import TokenTrack, check_known, choose, reduce
from compressor.model.token_select import gathered

BY_PIXELS = ("attention_entropy",)
"""Scores that read the image itself."""
BY_TEXT = ("coverage",)
"""Selections that read a question, behind the projector."""


class OutputReduction(nn.Module):
    """Selects among the tokens behind the last block; stands where the model hands them on."""

    def __init__(self, reduction: Reduction, tracks: Tracks) -> None:
        """Take a reduction at the site `output`, and where the blocks of the model leave what they have seen.

        Raises:
            ModelError: the reduction names what there is not.
        """
        super().__init__()
        check_known(reduction)
        self.reduction, self.tracks = reduction, tracks

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [batch, tokens that go on, width] of the last block's output [batch, tokens, width].

        Where the blocks do not run with the model, as in the block walk, all tokens go on.
        """
        blocks = (*self.reduction.also, self.reduction.block)
        if not all(block in self.tracks.seen for block in blocks):
            return hidden
        *earlier, seen = (self.tracks.seen.pop(block) for block in blocks)
        track, reduction = TokenTrack.start(hidden), self.reduction
        seen = replace(seen, hidden=hidden, earlier=tuple(earlier))
        if reduction.score in BY_PIXELS:
            assert self.tracks.pixels is not None, "the model has been called with them"
            patches = hidden.shape[1] - reduction.protect
            seen = replace(seen, entropy=patch_entropy(self.tracks.pixels, patches, reduction.columns))
        choice = choose(reduction, seen, track)
        if self.tracks.tell is not None:
            self.tracks.tell(reduction, choice, seen)
        return reduce(reduction, choice, hidden, track)[0]


class FeatureReduction(OutputReduction):
    """Selects among image features behind the projector, by what a question says."""

    def forward(self, hidden: Tensor, text: Tensor | None = None) -> Tensor:
        """Return [batch, features that go on, width] of features [batch, features, width].

        Args:
            hidden: the features.
            text: of the question's tokens [batch, tokens, width]; None: there is no question.
        """
        if self.reduction.block not in self.tracks.seen:
            return hidden
        seen = self.tracks.seen.pop(self.reduction.block)
        text = hidden[:, :0] if text is None else text
        before = seen.keys.shape[1] - hidden.shape[1]  # tokens that the projector has not read
        seen = replace(seen, hidden=nn.functional.pad(hidden, (0, 0, before, 0)), text=text)
        choice = choose(self.reduction, seen, TokenTrack.start(seen.keys[:, :, 0]))
        if self.tracks.tell is not None:
            self.tracks.tell(self.reduction, choice, seen)
        return gathered(hidden, choice.kept[:, before:] - before)


def install_output_reduction(model: nn.Module, family: Family, reduction: Reduction, tracks: Tracks) -> None:
    """Put a reduction at the site `output` in its place.

    Raises:
        ModelError: the model has no such place.
    """
    behind = reduction.select in BY_TEXT
    selector = family.feature_selector if behind else family.selector
    if selector is None:
        raise ModelError(
            "config.json: a token reduction has site 'output', and the model hands its tokens on nowhere",
            hint="The model was written by another version of compressor, or edited.",
        )
    setattr(model, selector, (FeatureReduction if behind else OutputReduction)(reduction, tracks))
    if reduction.score in BY_PIXELS:
        model.register_forward_pre_hook(tracks.see, with_kwargs=True)
