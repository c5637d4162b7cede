"""CHESS: channel-wise thresholding and selective sparsification (arXiv 2409.01366).

What a silent channel costs the FFN's output is estimated by |a_i|·E|u_i| (equation 7): the gate's activation times the
mean magnitude of what it multiplies. One quantile T of that over all channels and calibration tokens gives each channel
a threshold of its own,

    t_i = T / E|u_i|,   h_i = a_i·u_i where |a_i| > t_i, else 0

Of attention, the inputs of the query and output matrices get one threshold each; keys and values are read whole, as
later tokens look at them.
"""

from __future__ import annotations

from compressor.passes.activation.thresholds import SilenceOptions, Thresholds
from compressor.passes.preset import Preset

METHOD = Preset(
    "chess",
    of=Thresholds,
    Options=SilenceOptions,
    fixed={"at": "activation", "by": "contribution", "attention": True},
    summary="Let FFN channels that add little count as 0, by thresholds of their own; query and output too (CHESS)",
    paper="arXiv 2409.01366",
)
