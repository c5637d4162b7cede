"""TEAL: training-free activation sparsity in large language models (arXiv 2408.14690).

Every matrix of a block leaves out inputs of small magnitude, by one threshold for each input: the quantile of |x| over
calibration tokens. Columns of silent inputs need not be read.

    y = W·(x ∘ [|x| > t])
"""

from __future__ import annotations

from compressor.passes.activation.thresholds import SilenceOptions, Thresholds
from compressor.passes.preset import Preset

METHOD = Preset(
    "teal",
    of=Thresholds,
    Options=SilenceOptions,
    fixed={"at": "inputs", "by": "magnitude"},
    summary="Let small inputs of every matrix count as 0 (TEAL).",
    paper="arXiv 2408.14690",
)
