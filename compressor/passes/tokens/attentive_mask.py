"""Attentive mask: the class token's attention in all blocks so far decides (A-CLIP, arXiv 2212.08653).

A patch's score is the attention that the class token pays to it, averaged over heads and layers. The paper takes it
from a second, slowly updated encoder that has seen the whole image, and masks the image before the first block: a way
to train CLIP for less. Here an image is seen once, so the average runs over the blocks so far, and the patches of
lowest score go between blocks, for good.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction

METHOD = Preset(
    "attentive-mask",
    of=TokenReduction,
    Options=ScheduleOptions,
    fixed={"score": "cls_sum"},
    summary="Keep the patches that the class token has attended to most in all blocks so far (A-CLIP).",
    paper="arXiv 2212.08653",
)
