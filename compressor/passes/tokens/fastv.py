"""FastV: behind an early layer, image tokens go that the last token pays least attention to (arXiv 2403.06764).

The score of a token is the attention that the last token pays it in layer K, averaged over heads (section 4.1); behind
that layer, the lowest share R goes. The paper's setting is K = 2 and R = 50 %.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.llm_tokens import LayeredOptions, LlmTokens

METHOD = Preset(
    "fastv",
    of=LlmTokens,
    Options=LayeredOptions,
    fixed={"score": "last_attn"},
    summary="Let image tokens go that the prompt's last token hardly attends to, behind the second layer.",
    paper="arXiv 2403.06764",
)
