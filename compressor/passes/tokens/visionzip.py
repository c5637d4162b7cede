"""VisionZip: dominant image tokens, and contextual ones that the rest is merged into (arXiv 2412.04467).

Dominant tokens are those that the class token attends to most, averaged over heads. Of the others, evenly spaced ones
become contextual tokens: each of the rest joins the one that its key is most like, by the cosine of keys averaged over
heads, and a contextual token is the mean of what has joined it and itself. `anchors` is the share of contextual tokens;
the paper takes 10 of 64, 20 of 128 and 30 of 192. All stand in the order of the image.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens


class VisionzipOptions(LayerOptions):
    """Options of `visionzip`."""

    anchors: float = Field(0.156, gt=0, lt=1, description="The share of contextual tokens among those that go on.")


METHOD = Preset(
    "visionzip",
    of=VisualTokens,
    Options=VisionzipOptions,
    fixed={"score": "cls_attn", "select": "topk_anchors"},
    summary="Hand the image tokens on that the class token attends to; merge the rest into a few.",
    paper="arXiv 2412.04467",
)
