"""FasterVLM: the language model gets the image tokens that the class token attends to (arXiv 2412.01818).

A token's score is the attention of the class token in one block, averaged over heads (section 3.2); the highest go on.
The paper reads the block whose output the language model gets, which is the default here.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens

METHOD = Preset(
    "fastervlm",
    of=VisualTokens,
    Options=LayerOptions,
    fixed={"score": "cls_attn"},
    summary="Hand the image tokens on that the class token attends to.",
    paper="arXiv 2412.01818",
)
