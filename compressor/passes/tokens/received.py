"""Received attention: tokens that get little attention from all others go.

A token's score is the mean of its column of the attention matrix, over queries and heads: what the other tokens take
from it. It asks for no class token, and PoWER-BERT (arXiv 2001.08950, section 3.2) uses it for text. What goes leaves
no trace.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction

METHOD = Preset(
    "received",
    of=TokenReduction,
    Options=ScheduleOptions,
    fixed={"score": "received"},
    summary="Keep the tokens of images or texts that receive most attention from all others.",
    paper="arXiv 2001.08950",
)
