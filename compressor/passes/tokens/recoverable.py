"""Recoverable compression: tokens like the class token, and the others as clusters (arXiv 2409.01179).

A token's visual score is the product of its hidden state with the class token's. The highest go on; of the others,
centres of clusters do, each as the mean of its cluster. `anchors` is the share of clusters. In the paper outliers among
the scores (local outlier factor) say how many go on, and the question recovers some more; here the number is static,
and the graph of the encoder sees no question.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import CountOptions, VisualTokens


class RecoverableOptions(CountOptions):
    """Options of `recoverable`."""

    anchors: float = Field(0.25, gt=0, lt=1, description="The share of clusters among the tokens that go on.")


METHOD = Preset(
    "recoverable",
    of=VisualTokens,
    Options=RecoverableOptions,
    fixed={"score": "cls_similarity", "select": "clusters"},
    summary="Hand the image tokens most like the class token on, and clusters of the others.",
    paper="arXiv 2409.01179",
)
