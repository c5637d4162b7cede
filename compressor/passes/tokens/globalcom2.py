"""GlobalCom²: a view of the whole image says how much each crop may keep (arXiv 2501.05179).

A crop keeps R·(1 + σ − 1/n) of its tokens: R is the share of all, and σ a softmax over the n crops of the attention
that the class token pays to their places in the view of the whole, over a temperature of 10. So budgets stay near each
other. Here the encoder reads one image: crops are regions of it, and the whole is the image itself, so that the paper's
mean of global and local attention is the attention of the class token.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import RegionOptions, VisualTokens


class Globalcom2Options(RegionOptions):
    """Options of `globalcom2`."""

    temperature: float = Field(10.0, gt=0, description="Of the softmax; the lower it is, the farther budgets differ.")


METHOD = Preset(
    "globalcom2",
    of=VisualTokens,
    Options=Globalcom2Options,
    fixed={"score": "cls_attn", "select": "regions", "quota": "guided"},
    summary="Hand image tokens on, of each region nearly as many, moved by the class token's attention to it.",
    paper="arXiv 2501.05179",
)
