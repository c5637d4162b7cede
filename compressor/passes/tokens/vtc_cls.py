"""VTC-CLS: the attention of the class token, averaged over several blocks (arXiv 2412.05819).

Deep blocks attend to the whole, earlier ones to parts; a token's score is the attention that the class token pays to
it, averaged over heads and over the block `layer` and the blocks `earlier`. The highest go on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens


class VtcClsOptions(LayerOptions):
    """Options of `vtc-cls`."""

    earlier: tuple[Block, ...] | Literal["all"] = Field(
        "all", description="Blocks before `layer` that count as much, counted from 1, or all."
    )


METHOD = Preset(
    "vtc-cls",
    of=VisualTokens,
    Options=VtcClsOptions,
    fixed={"score": "cls_attn_layers"},
    summary="Hand the image tokens on that the class token attends to in several blocks.",
    paper="arXiv 2412.05819",
)
