"""Random image tokens go on to the language model: what any selection must beat at equal counts.

Which ones depends on their places alone, and is the same for every image and in every runtime.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import CountOptions, VisualTokens

METHOD = Preset(
    "random-visual-tokens",
    of=VisualTokens,
    Options=CountOptions,
    fixed={"score": "random"},
    summary="Hand random image tokens on: the baseline of selections behind the encoder.",
    paper="baseline",
)
