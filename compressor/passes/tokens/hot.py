"""HoT: few tokens go through the blocks, and those that went are recovered from them at the end (arXiv 2311.12028).

The hourglass of HoT: representative tokens are selected, and behind the last block a cross-attention recovers all of
them. There it is trained; here, without training, a token that goes takes shares of those that stay, by a softmax of
the cosine of their keys over a temperature, when it goes; behind the last block it is the mean of those in these
shares. Where one of them goes later, its own shares take its place, so the shares of all reductions multiply.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class HotOptions(ScheduleOptions):
    """Options of `hot`."""

    score: Literal["random", "received", "value_norm", "cls_attn"] = Field(
        "random", description="Which tokens represent the others: evenly spread ones, or those of high score."
    )
    temperature: float = Field(0.02, gt=0, description="Low: a token is its most similar one; high: the mean of all.")


METHOD = Preset(
    "hot",
    of=TokenReduction,
    Options=HotOptions,
    fixed={"dropped": "recover"},
    summary="Let few image tokens run and recover the others from them behind the last block (HoT).",
    paper="arXiv 2311.12028",
)
