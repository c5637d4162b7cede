"""FEATHER: image tokens go in two stages, by attention without positions, and some stay all over (arXiv 2412.13180).

Rotary positions make early layers favour image tokens near the text, whatever they show. So the score is the attention
of the prompt's last token computed without them; at the first stage, evenly spaced tokens stay beside those of high
score; and a second stage later lets more go. The paper's layers are about a quarter and half of the depth: 8 and 16 of
32.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block, Share
from compressor.passes.tokens.llm_tokens import LayeredOptions, LlmTokens


class FeatherOptions(LayeredOptions):
    """Options of `feather`."""

    layers: Annotated[tuple[Block, ...], Field(min_length=1)] = Field(
        (8, 16), description="The layers behind which tokens go, counted from 1, in rising order."
    )
    spaced: Share = Field(
        0.5, description="Share of those that go on at the first of `layers` that are evenly spaced ones."
    )


METHOD = Preset(
    "feather",
    of=LlmTokens,
    Options=FeatherOptions,
    fixed={"score": "unturned_attn"},
    summary="Let image tokens go in two stages, by attention without positions; evenly spaced ones stay.",
    paper="arXiv 2412.13180",
)
