"""AIM's pruning inside the language model: image tokens of low rank on the graph of attention go (arXiv 2412.03248).

A token matters as much as the attention that it gets from tokens that matter, in the layer behind which tokens go. The
paper's merging before the language model is a method of the image part (`tome`).
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.llm_tokens import LayeredOptions, LlmTokens

METHOD = Preset(
    "aim",
    of=LlmTokens,
    Options=LayeredOptions,
    fixed={"score": "page_rank"},
    summary="Let image tokens go that have a low rank on the graph of attention inside the language model.",
    paper="arXiv 2412.03248",
)
