"""Modules that count small numbers as 0, so that the weights these would meet need not be read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.model.blueprint import GateSpec


class GatedLinear(nn.Linear):
    """A linear module that takes inputs for 0 that its gate silences: y = W·(x ∘ [|x| > t]) + b.

    A subclass, so that everything that reads and writes linear modules treats it as one.
    """

    def __init__(self, linear: nn.Linear, gate: GateSpec) -> None:
        """Adopt the parameters of `linear`."""
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.gate = gate

    def gated(self, input: Tensor) -> Tensor:
        """Return inputs [..., in] with 0 in the place of silent ones."""
        return loud(input, self.gate, self.gate.threshold)

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out] for inputs [..., in]."""
        return super().forward(self.gated(input))


class GatedActivation(nn.Module):
    """An activation function whose small values are 0: a(x) ∘ [|a(x)| > t], with t for all channels or for each."""

    def __init__(self, activation: nn.Module, gate: GateSpec, channels: int) -> None:
        """Take the place of `activation`, of which `channels` values come at a time; a gate takes another's place."""
        super().__init__()
        inner = getattr(activation, "activation", activation) if isinstance(activation, GatedActivation) else activation
        self.activation: nn.Module = inner
        self.gate = gate
        if gate.per_channel:
            self.threshold = nn.Parameter(torch.empty(channels, device="meta"), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return values [..., channels] for inputs [..., channels]."""
        values = self.activation(input)
        return loud(values, self.gate, self.threshold if self.gate.per_channel else self.gate.threshold)


def loud(values: Tensor, gate: GateSpec, threshold: Tensor | float) -> Tensor:
    """Return values [..., n] with 0 in the place of silent ones; NaN is never silent, so that it stays seen."""
    size = values.abs()
    if gate.count:
        threshold = size.topk(gate.count + 1, dim=-1).values[..., -1:] if gate.count < size.shape[-1] else -1.0
    return torch.where(size <= threshold, torch.zeros((), dtype=values.dtype, device=values.device), values)
