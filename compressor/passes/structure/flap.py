"""FLAP: fluctuation-based pruning of FFN channels (arXiv 2312.11983), with least squares in place of bias compensation.

A channel's score is Var[a_j] · ‖W_down[:, j]‖²: what is lost when a bias takes over its mean. Blocks share the loss
globally, on their own loss curves along that order. Least squares gives what is left the mean and the fluctuation of
what went, where the paper adds a bias that holds the mean alone. This is the `width` mechanism with both choices made.
"""

from __future__ import annotations

from compressor.passes.preset import Preset
from compressor.passes.structure._width.options import CutOptions
from compressor.passes.structure.width import Width

METHOD = Preset(
    "flap",
    of=Width,
    Options=CutOptions,
    fixed={"importance": "flap", "allocation": "global", "weighting": "residual"},
    summary="Remove the FFN channels that fluctuate least, weighed by what they write.",
    paper="arXiv 2312.11983",
)
