"""CLCA: what is lost waits in a cache and comes back before the last block (arXiv 2501.00243).

In each of the blocks the patch tokens with the highest attention of the class token go on, as in EViT. The others
become one token, their mean weighted by that attention, which waits; behind the block before the last, all that wait
join the sequence again, so that the last block's class token sees them. The paper trains a head on top that reads
several blocks (cross-layer aggregation); a trained head is no part of the artifact's model, so that half is left out.
Blocks from the last but one on let no tokens go.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction

METHOD = Preset(
    "clca",
    of=TokenReduction,
    Options=ScheduleOptions,
    fixed={"score": "cls_attn", "dropped": "cache"},
    summary="Drop image tokens and give one of each block's losses back before the last block.",
    paper="arXiv 2501.00243",
)
