"""Random image tokens go inside the language model: what any other choice must beat at equal counts and layers.

Which ones depends on their places alone, and is the same for every prompt and in every runtime.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.llm_tokens import LayeredOptions, LlmTokens

METHOD = Preset(
    "random-llm-tokens",
    of=LlmTokens,
    Options=LayeredOptions,
    fixed={"score": "random"},
    summary="Let random image tokens go inside the language model: the baseline of choices there.",
    paper="baseline",
)
