"""Top-k neurons: of each token, only the FFN channels of the largest magnitudes go on (lazy neurons, arXiv 2210.06313).

    h_i = a_i·u_i where it is among the k largest of its token, else 0;   k = (1 − sparsity) · channels

The count is the same for every token; which channels they are is settled behind both reading projections, so that only
columns of the down projection are skipped.
"""

from __future__ import annotations

from compressor.passes.activation.thresholds import SilenceOptions, Thresholds
from compressor.passes.preset import Preset

METHOD = Preset(
    "topk",
    of=Thresholds,
    Options=SilenceOptions,
    fixed={"at": "activation", "by": "largest"},
    summary="Let only the largest FFN channels of each token go on (top-k neurons).",
    paper="arXiv 2210.06313",
)
