"""CFSP: coarse-to-fine structured pruning of FFN channels (arXiv 2409.13199), with least-squares reconstruction on.

Coarse, how many channels a block keeps, by how far it turns the residual stream; fine, which ones, by what a channel
writes and reads. This is the `width` mechanism with both choices made; see `width.py`, `allocation.angular` and
`importance.cfsp_score`. The paper recovers by tuning low-rank adapters; here the refit stands in for it.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.structure._width.options import CutOptions
from compressor.passes.structure.width import Width


class CfspOptions(CutOptions):
    """Options of `cfsp`."""

    temperature: float = Field(1.0, gt=0, description="High values bring the blocks' widths nearer to each other.")


METHOD = Preset(
    "cfsp",
    of=Width,
    Options=CfspOptions,
    fixed={"importance": "cfsp", "allocation": "cfsp"},
    summary="Remove FFN channels by CFSP's scores, more from blocks that change the stream little.",
    paper="arXiv 2409.13199",
)
