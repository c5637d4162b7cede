"""TransPrune: image tokens go that layers hardly change and the instruction hardly attends to (arXiv 2507.20630).

What a layer does to a token is its transition: length behind / before, times (1 − cosine). Summed up over a few layers,
as a share of the sum over image tokens, it counts as much as the share of the attention that the text behind the image
pays in the layer behind which tokens go.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.llm_tokens import LayeredOptions, LlmTokens


class TransPruneOptions(LayeredOptions):
    """Options of `transprune`."""

    summed: int = Field(4, ge=1, description="How many layers sum up changes for each of `layers`, that one the last.")


METHOD = Preset(
    "transprune",
    of=LlmTokens,
    Options=TransPruneOptions,
    fixed={"score": "transitions"},
    summary="Let image tokens go that layers hardly change and the instruction hardly attends to.",
    paper="arXiv 2507.20630",
)
