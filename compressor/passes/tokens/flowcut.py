"""FlowCut: the information that flows through each image token, over all blocks (arXiv 2505.19536).

In a block: (attention of the class token, averaged over heads, + softmax of the products of its value with each value)
· the sum of magnitudes of the token's value. A block's scores count as much as those of all blocks before it (a moving
average of 0.5). The highest go on, once, behind the last block; the paper's number of tokens that adapts to the batch
is left out, as a sample's result must not depend on its batch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block
from compressor.passes.tokens.visual_tokens import LayerOptions, VisualTokens


class FlowcutOptions(LayerOptions):
    """Options of `flowcut`."""

    earlier: tuple[Block, ...] | Literal["all"] = Field(
        "all", description="Blocks before `layer` that are averaged, counted from 1, or all."
    )


METHOD = Preset(
    "flowcut",
    of=VisualTokens,
    Options=FlowcutOptions,
    fixed={"score": "flowcut"},
    summary="Hand the image tokens on through which most information flows, over blocks.",
    paper="arXiv 2505.19536",
)
