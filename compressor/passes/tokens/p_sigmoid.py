"""P-Sigmoid: shares of image tokens fall along the layers as a sigmoid of two parameters (arXiv 2412.00556).

Which tokens go at each layer is FastV's choice, the attention of the prompt's last token. Two numbers say how many: how
steep the curve is, and at which depth half of the tokens are left.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block, Share
from compressor.passes.tokens.llm_tokens import LlmTokens, SpanOptions, Steepness


class SigmoidOptions(SpanOptions):
    """Options of `p-sigmoid`."""

    layers: Annotated[tuple[Block, ...], Field(min_length=1)] = Field(
        (4, 8, 12, 16, 20, 24, 28), description="The layers behind which tokens go, counted from 1, in rising order."
    )
    sigmoid: tuple[Steepness, Share] = Field(
        (10.0, 0.4), description="Steepness of the curve, and the depth (0 to 1) where half of the tokens are left."
    )


METHOD = Preset(
    "p-sigmoid",
    of=LlmTokens,
    Options=SigmoidOptions,
    fixed={"score": "last_attn"},
    summary="Let image tokens go along the layers as a sigmoid says, by attention of the last token.",
    paper="arXiv 2412.00556",
)
