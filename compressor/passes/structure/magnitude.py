"""Magnitude: removes the FFN channels with the least weights; the plainest baseline, the same share from every block.

A channel's score is the product of the norms of its rows in the readers and its column in the writer. No activation is
looked at unless `reconstruct` asks for the least-squares refit. This is the `width` mechanism with both choices made.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.structure._width.options import CutOptions
from compressor.passes.structure.width import Width

METHOD = Preset(
    "magnitude",
    of=Width,
    Options=CutOptions,
    fixed={"importance": "magnitude", "allocation": "uniform"},
    summary="Remove the FFN channels with the least weights, the same share from every block.",
    paper="the baseline of all papers on pruning",
)
