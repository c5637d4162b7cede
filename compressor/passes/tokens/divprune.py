"""DivPrune: the language model gets the image tokens that are farthest from each other (arXiv 2503.02175).

Greedily, by the largest least distance, where a distance is 1 − the cosine of two tokens: first the token
whose nearest other is farthest, then always the one whose nearest among those chosen is farthest. No attention is read.
The paper compares tokens behind the projector; here they are compared before it, so that it has less to do.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import CountOptions, VisualTokens

METHOD = Preset(
    "divprune",
    of=VisualTokens,
    Options=CountOptions,
    fixed={"score": "hidden_state", "select": "most_distant"},
    summary="Hand image tokens on that are far from each other (max-min distance).",
    paper="arXiv 2503.02175",
)
