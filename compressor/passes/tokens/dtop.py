"""DToP: easy tokens leave early and come back at the end as they were when they left (arXiv 2308.01045).

Dynamic Token Pruning for segmentation: at some blocks, tokens whose class is clear already leave, and the head reads of
them the state in which they left; the other tokens go on. What is clear is graded there by auxiliary heads that were
trained with the model; without such heads a score that this mechanism has grades them, and counts are fixed instead of
depending on the image, so that shapes are static. Features of every patch come out, in their places.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class DtopOptions(ScheduleOptions):
    """Options of `dtop`."""

    score: Literal["received", "value_norm", "cascade", "cls_attn", "random"] = Field(
        "received", description="Tokens of which it is low leave: attention received, length of the value, and others."
    )


METHOD = Preset(
    "dtop",
    of=TokenReduction,
    Options=DtopOptions,
    fixed={"dropped": "exit"},
    summary="Let easy image tokens leave early; features of every patch come out (DToP).",
    paper="arXiv 2308.01045",
)
