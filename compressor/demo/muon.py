"""The optimizer of the small LLaVA model's matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are brought near orthogonal ones (Newton-Schulz; Keller Jordan, 2024), in float32.

    As `torch.optim.Muon` with `match_rms_adamw`, which computes in bfloat16: on processors that emulate it, a step then
    costs more than the model. Matrices of one shape go together.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.05) -> None:
        """Take matrices, the learning rate and the weight decay."""
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Turn every matrix along its momentum."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                alike.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in alike.items():
                updates = self._orthogonal(torch.stack([self._momentum(matrix) for matrix in matrices]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        assert matrix.grad is not None
        held = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
        held.lerp_(matrix.grad, 0.05)
        return matrix.grad.lerp(held, 0.95)

    @staticmethod
    def _orthogonal(matrices: Tensor) -> Tensor:
        """Return matrices [n, rows, columns] with singular values near 1, by five steps of an odd polynomial."""
        wide = matrices.shape[1] <= matrices.shape[2]
        x = matrices if wide else matrices.mT
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
        for _ in range(5):
            square = x @ x.mT
            x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
        return x if wide else x.mT
