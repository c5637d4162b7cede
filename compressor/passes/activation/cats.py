"""CATS: contextually-aware thresholding (arXiv 2404.08763).

One threshold for each block: the quantile of |SiLU(W_g·x)| over calibration tokens. Where the gate's activation stays
below it, the channel is 0: rows of the up projection and columns of the down projection need not be read, while the
gate projection is read whole.

    h_i = a_i·u_i where |a_i| > t, else 0;   a = SiLU(W_g·x), u = W_u·x
"""

from __future__ import annotations

from compressor.passes.activation.thresholds import SilenceOptions, Thresholds
from compressor.passes.preset import Preset

METHOD = Preset(
    "cats",
    of=Thresholds,
    Options=SilenceOptions,
    fixed={"at": "activation", "by": "magnitude"},
    summary="Let small values of the FFN's gate count as 0, by one threshold for each block (CATS).",
    paper="arXiv 2404.08763",
)
