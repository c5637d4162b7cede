"""Random tokens go: what any selection must beat at equal counts.

Neighbouring patches say much the same, so this is a strong baseline: it stands in every table of token methods. Which
tokens go depends on their places alone, and is the same in every runtime.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction

METHOD = Preset(
    "random-tokens",
    of=TokenReduction,
    Options=ScheduleOptions,
    fixed={"score": "random"},
    summary="Drop random tokens: the baseline of the token methods.",
    paper="baseline",
)
