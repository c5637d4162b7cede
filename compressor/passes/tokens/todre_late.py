"""ToDRE's second stage: behind a late layer all image tokens go (arXiv 2505.18757).

In late layers text attends to text: what the image says is in there by then. The first stage, a selection behind the
image encoder, is `todre`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block
from compressor.passes.tokens.llm_tokens import LlmTokens, SpanOptions


class LateOptions(SpanOptions):
    """Options of `todre-late`."""

    layers: Annotated[tuple[Block, ...], Field(min_length=1, max_length=1)] = Field(
        description="The layer behind which all image tokens go, counted from 1."
    )


METHOD = Preset(
    "todre-late",
    of=LlmTokens,
    Options=LateOptions,
    fixed={"score": "random", "counts": (0,)},
    summary="Let all image tokens go behind a late layer of the language model.",
    paper="arXiv 2505.18757",
)
