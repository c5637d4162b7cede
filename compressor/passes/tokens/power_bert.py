"""PoWER-BERT: in every block the word vectors of lowest significance are eliminated (arXiv 2001.08950).

Between attention and FFN of every block, a word vector's significance is all the attention that it receives: its column
of the attention matrix, summed over the rows of the text and over heads (section 3.2); padding gives none and has none.
As many go on as the retention configuration says, [CLS] always. The paper learns that configuration and
fine-tunes the model with it; here it is given, as `shares` of a text's tokens or as one ratio `keep` from
block to block, and no weight changes. [SEP] goes on too: much attention rests on it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import Block, ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class PowerBertOptions(ScheduleOptions):
    """Options of `power-bert`."""

    layers: Annotated[tuple[Block, ...], Field(min_length=1)] | Literal["all"] | None = Field(
        "all", description="The blocks in which tokens go, counted from 1, or all."
    )


METHOD = Preset(
    "power-bert",
    of=TokenReduction,
    Options=PowerBertOptions,
    fixed={"score": "received"},
    summary="Eliminate in every block the tokens that receive least attention (PoWER-BERT); no data needed.",
    paper="arXiv 2001.08950",
)
