"""MMTok: image features that cover the question and the image (arXiv 2508.18264).

Greedily, each time the feature that adds most to how well the features chosen cover the question's tokens and all
features of the image. A target is covered as well as by the feature chosen that is most like it; likeness is a softmax
over all features of the cosine over a temperature, 0.02 for the question and 0.2 for the image, which counts half.
Features are compared behind the projector, where those of image and question are of one kind. The graph has one input
more, `text_features` [batch, tokens, width]: the language model's embeddings of the question; without any it covers the
image alone.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import CountOptions, VisualTokens

METHOD = Preset(
    "mmtok",
    of=VisualTokens,
    Options=CountOptions,
    fixed={"score": "hidden_state", "select": "coverage"},
    summary="Hand the image features on that cover the question and the image best; the graph reads the question.",
    paper="arXiv 2508.18264",
)
