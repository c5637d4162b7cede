"""SpAtten: the attention that tokens have received so far decides (arXiv 2012.09852).

Cascade token pruning (section III-A): a token's importance is the attention that it has received in this and all
earlier blocks, summed over queries and heads; in three blocks the least important go for good. The paper also prunes
whole heads by the sums of their outputs, sample by sample, which its hardware skips. A graph of static shapes cannot
skip heads by sample, so that half is left out; heads that matter little for all samples are what structured pruning
removes.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction

METHOD = Preset(
    "spatten",
    of=TokenReduction,
    Options=ScheduleOptions,
    fixed={"score": "cascade"},
    summary="Keep the tokens that have received most attention in all blocks so far.",
    paper="arXiv 2012.09852",
)
