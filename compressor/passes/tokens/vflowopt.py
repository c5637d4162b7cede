"""VFlowOpt: attention and entropy of each patch; the rest is recycled into a few tokens (arXiv 2508.05211).

A token's score is its patch's share of the class token's attention plus its share of the entropy of the pixels in all
patches. The highest go on; the rest is merged into evenly spaced tokens among them, each into the one that its key is
most like. `anchors` is the share of these recycled tokens. The paper's search of a schedule inside the language model
is left out.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens


class VflowoptOptions(LayerOptions):
    """Options of `vflowopt`."""

    anchors: float = Field(0.1, gt=0, lt=1, description="The share of recycled tokens among those that go on.")


METHOD = Preset(
    "vflowopt",
    of=VisualTokens,
    Options=VflowoptOptions,
    fixed={"score": "attention_entropy", "select": "topk_anchors"},
    summary="Hand the image tokens of high attention and entropy on; recycle the rest into a few.",
    paper="arXiv 2508.05211",
)
