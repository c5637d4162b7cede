"""PruneSID: image tokens of every principal direction, those first that no other one stands for (arXiv 2603.09480).

Each token is of the group of the principal direction of the image that it has most of; a group's share of all tokens is
its share of those that go on. In a group a token is suppressed if one that has more of the direction is alike to it:
their cosine is above the middle between 1 and the mean cosine of the image. First go those that are not suppressed,
each kind from those that have most of the direction on. The paper's number that adapts to the image is left out.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import CountOptions, VisualTokens


class PrunesidOptions(CountOptions):
    """Options of `prunesid`."""

    directions: int = Field(8, ge=2, description="How many principal directions there are groups for.")


METHOD = Preset(
    "prunesid",
    of=VisualTokens,
    Options=PrunesidOptions,
    fixed={"score": "hidden_state", "select": "directions"},
    summary="Hand image tokens of every principal direction on, those first that no other one stands for.",
    paper="arXiv 2603.09480",
)
