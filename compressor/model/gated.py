"""Linear modules that leave silent inputs out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.model.blueprint import GateSpec


class GatedLinear(nn.Linear):
    """A linear module that takes inputs for 0 whose magnitude is at most a threshold: y = W·(x ∘ [|x| > t]) + b.

    A subclass, so that everything that reads and writes linear modules treats it as one.
    """

    def __init__(self, linear: nn.Linear, gate: GateSpec) -> None:
        """Adopt the parameters of `linear`."""
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.threshold = gate.threshold

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out] for inputs [..., in]."""
        loud = input.abs() > self.threshold
        return super().forward(torch.where(loud, input, torch.zeros((), dtype=input.dtype, device=input.device)))
