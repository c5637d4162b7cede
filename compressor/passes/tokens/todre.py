"""ToDRE, first stage: image tokens that cover all others, from the most attended one on (arXiv 2505.18757).

Greedy k-centre: the first token is the one that the class token attends to most, averaged over heads; each next one has
the farthest nearest token among those chosen, where a distance is 1 − the cosine of hidden states. The second stage,
which lets tokens go inside the language model, is a pass on that.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens

METHOD = Preset(
    "todre",
    of=VisualTokens,
    Options=LayerOptions,
    fixed={"score": "cls_attn", "select": "k_center"},
    summary="Hand the most attended image token on, and those that are farthest from what goes on already.",
    paper="arXiv 2505.18757",
)
