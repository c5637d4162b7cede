"""RMSNorm as the one operator that ONNX Runtime has for it.

Traced as it is written, an RMSNorm becomes Pow, ReduceMean, Add, Sqrt, Reciprocal, Mul and Mul, which the runtime never
joins again. What a module with such a name computes is measured, not assumed: `w * x / rms(x)`, or Gemma's
`(1 + w) * x / rms(x)`. A module that computes anything else is traced as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor, nn


@contextmanager
def fused_rms_norms(model: nn.Module) -> Iterator[int]:
    """Make every RMSNorm of `model` emit SimplifiedLayerNormalization for the time of a trace.

    Args:
        model: any module; its weights may lie on the meta device.

    Yields:
        Number of norms that were recognised.
    """
    with ExitStack() as stack:
        count = 0
        for module in model.modules():
            if (offset := _measured_offset(module)) is not None:
                stack.enter_context(mock.patch.object(module, "forward", _emitter(module, offset)))
                count += 1
        yield count


def _emitter(module: nn.Module, offset: float) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight: Tensor = module.get_parameter("weight")
        weight = weight + offset if offset else weight
        return torch.onnx.ops.symbolic(
            "::SimplifiedLayerNormalization",
            [x, weight],
            {"epsilon": _epsilon(module), "axis": -1, "stash_type": 1},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )

    return forward


def _epsilon(module: nn.Module) -> float:
    return float(next((getattr(module, n) for n in ("variance_epsilon", "eps", "epsilon") if hasattr(module, n)), 0.0))


def _measured_offset(module: nn.Module) -> float | None:
    """Return what the module adds to its weight (0 or 1), or None when it is no RMSNorm."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    if [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    generator = torch.Generator().manual_seed(0)
    gain = torch.rand(weight.shape, generator=generator)
    x = torch.randn((3, weight.shape[0]), generator=generator)
    with torch.no_grad():
        given = torch.func.functional_call(module, {"weight": gain}, (x,))
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + _epsilon(module))
    for offset in (0.0, 1.0):
        if given.shape == x.shape and torch.allclose(given, (gain + offset) * normal, rtol=1e-5, atol=1e-6):
            return offset
    return None
