"""FoPru: the most significant image tokens, or the most significant rows of them (arXiv 2411.14164).

A token's significance is the attention that the class token pays to it in one block, averaged over heads. The rank
strategy (`select: topk`) takes the highest; the row strategy (`select: rows`) takes whole rows of patches, those whose
significance sums up highest, so that what is kept stays connected. Kept tokens keep their order.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens


class FopruOptions(LayerOptions):
    """Options of `fopru`; with rows, the number that goes on is a multiple of the patches in a row."""

    select: Literal["topk", "rows"] = Field("topk", description="The paper's rank strategy, or its row strategy.")


METHOD = Preset(
    "fopru",
    of=VisualTokens,
    Options=FopruOptions,
    fixed={"score": "cls_attn"},
    summary="Hand the most significant image tokens, or rows of them, on.",
    paper="arXiv 2411.14164",
)
