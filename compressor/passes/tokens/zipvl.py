"""ZipVL's adaptive ratio: as many image tokens stay as have most of the attention (arXiv 2410.08584).

How many go on comes from each prompt: the fewest whose attention from the prompt's last token, mean over heads, has at
least the share `mass` of what all image tokens get. The count is found in the graph, at run time.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block, Share
from compressor.passes.tokens.llm_tokens import LlmTokens, SpanOptions


class AdaptiveOptions(SpanOptions):
    """Options of `zipvl`."""

    layers: Annotated[tuple[Block, ...], Field(min_length=1, max_length=1)] = Field(
        (2,), description="The layer behind which tokens go, counted from 1."
    )
    mass: Share = Field(0.95, description="Share of the image tokens' attention that those that stay have at least.")


METHOD = Preset(
    "zipvl",
    of=LlmTokens,
    Options=AdaptiveOptions,
    fixed={"score": "last_attn", "counts": (1,)},
    summary="Let as many image tokens stay as have most of the attention, a number of each prompt's own.",
    paper="arXiv 2410.08584",
)
