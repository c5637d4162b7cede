"""EViT: tokens that the class token pays little attention to become one (arXiv 2202.07800).

In three blocks, the patch tokens with the highest attention of the class token, averaged over heads, go on (section
3.2); all others become one more token, their mean weighted by that attention (section 3.3), so that what they show is
not lost. Of a distilled model both leading tokens count.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction

METHOD = Preset(
    "evit",
    of=TokenReduction,
    Options=ScheduleOptions,
    fixed={"score": "cls_attn", "dropped": "fuse"},
    summary="Keep the image tokens that the class token attends to; the others become one.",
    paper="arXiv 2202.07800",
)
