"""Optimal Brain Surgeon on the channels of one linear map: which inputs can go, and what their loss costs.

A map y ≈ W·h with second moments H = E[h hᵀ] loses ‖W_:,p‖² / [H⁻¹]_pp (in E‖y − W·h‖²) when channel p goes and the
others make up for it as well as they can; then W ← W − W_:,p [H⁻¹]_p,: / [H⁻¹]_pp and H⁻¹ is downdated alike
(Hassibi & Stork 1993, equation 5, with one column of W as a unit). Backward elimination repeats this. A few channels go
at a time; the joint loss of such a group is tr(W_P [H⁻¹]_PP⁻¹ W_Pᵀ), exact, not the sum of its members' own losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.errors import ModelError

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

# A group is at most this share of the channels left: larger ones would remove channels that stand in for each other.
GROUP_SHARE = 1 / 64


@dataclass(frozen=True)
class Elimination:
    """The order in which channels of a map go.

    Attributes:
        order: [channels - kept] indices, the cheapest first.
        losses: [channels - kept] float64; losses[i] is E‖y − W'·h‖² − E‖y − W·h‖² with order[: i + 1] gone and W' refit
            (damped as `eliminate` was told); it never falls.
    """

    order: torch.Tensor
    losses: torch.Tensor

    def kept(self, width: int, channels: int) -> torch.Tensor:
        """Return the sorted indices [width] of the channels that are left when `channels - width` have gone."""
        mask = torch.ones(channels, dtype=torch.bool, device=self.order.device)
        mask[self.order[: channels - width]] = False
        return mask.nonzero().squeeze(1)


def check_finite(gram: torch.Tensor) -> None:
    """Raise ModelError where second moments hold NaN or infinity."""
    if not bool(torch.isfinite(gram).all()):
        raise ModelError("second moments of the activations are not finite", hint="The model overflows on this data.")


def damped(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """Return H + λI in float64 with λ = damping · mean diagonal of H.

    Args:
        gram: [channels, channels] second moments.
        damping: share of the mean diagonal, dimensionless.

    Raises:
        ModelError: the second moments are not finite.
    """
    gram = gram.double()
    check_finite(gram)
    mean = gram.diagonal().mean()
    # A map that never sees a signal is as good without any channel: the identity then stands in for λI.
    scale = damping * mean if float(mean) > 0 else torch.ones_like(mean)
    return gram + scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a symmetric positive definite matrix.

    Raises:
        ModelError: it is singular to working precision.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise ModelError(
            "the second moments of the activations are singular", hint="Raise `damping` or give more calibration data."
        )
    return torch.cholesky_inverse(factor)


def eliminate(
    weight: torch.Tensor,
    gram: torch.Tensor,
    *,
    keep: int = 1,
    damping: float = 0.01,
    metric: torch.Tensor | None = None,
    group: int | None = None,
) -> Elimination:
    """Remove channels one group after another until `keep` are left.

    Args:
        weight: [out, channels], the least-squares map W (damped as here) whose inputs are to go.
        gram: [channels, channels] second moments H of the inputs.
        keep: how many channels stay, at least 1.
        damping: λ over the mean diagonal of H.
        metric: [out, out] positive semi-definite; losses are then E[eᵀ·metric·e] of the error e instead of E‖e‖².
        group: channels that go at a time; None takes 1/64 of those left.

    Raises:
        ModelError: the second moments are not finite, or singular in spite of damping.
    """
    channels = weight.shape[1]
    target = weight.double()
    if metric is not None:
        # The columns' inner products are all that counts: any root of the metric gives the same losses.
        values, vectors = torch.linalg.eigh(metric.double())
        target = (vectors * values.clamp_min(0).sqrt()).T @ target
    state = _State(target, inverse(damped(gram, damping)))
    while len(state.left) > keep:
        share = group or max(1, int(len(state.left) * GROUP_SHARE))
        state.remove(min(share, len(state.left) - keep))
    order = torch.cat(state.order) if state.order else torch.empty(0, dtype=torch.long, device=weight.device)
    steps = torch.cat(state.steps) if state.steps else torch.empty(0, dtype=torch.float64, device=weight.device)
    assert len(order) == channels - keep
    return Elimination(order, steps.cumsum(0))


class _State:
    """What is left of a map in the course of an elimination."""

    def __init__(self, target: Any, inverse_gram: Any) -> None:
        self.target = target  # [out, left]
        self.inverse = inverse_gram  # [left, left]
        self.left = torch.arange(target.shape[1], device=target.device)
        self.order: list[Any] = []
        self.steps: list[Any] = []

    def remove(self, count: int) -> None:
        """Remove the `count` channels whose own loss is least, the cheapest first."""
        costs = self.target.square().sum(0) / self.inverse.diagonal()
        gone = costs.argsort(stable=True)[:count]
        stays = torch.ones(len(costs), dtype=torch.bool, device=costs.device)
        stays[gone] = False
        factor = torch.linalg.cholesky(self.inverse[gone[:, None], gone])  # (count, count)
        # Columns of W_P L⁻ᵀ: the square of column i is what channel i costs once those before it have gone.
        across = torch.linalg.solve_triangular(factor, self.inverse[gone], upper=False)  # (count, left)
        steps = torch.linalg.solve_triangular(factor, self.target[:, gone].T, upper=False)  # (count, out)
        self.order.append(self.left[gone])
        self.steps.append(steps.square().sum(1))
        across = across[:, stays]
        self.target = self.target[:, stays].addmm_(steps.T, across, alpha=-1)
        self.inverse = self.inverse[stays][:, stays].addmm_(across.T, across, alpha=-1)
        self.left = self.left[stays]


def losses_in_order(weight: torch.Tensor, gram: torch.Tensor, order: torch.Tensor, *, damping: float) -> torch.Tensor:
    """Return the losses of `Elimination` for channels that go in a given order.

    Args:
        weight: [out, channels], the least-squares map.
        gram: [channels, channels] second moments of its inputs.
        order: [n] indices of the channels, the first to go first.
        damping: λ over the mean diagonal of the second moments.

    Raises:
        ModelError: the second moments are not finite, or singular in spite of damping.
    """
    inverse_gram = inverse(damped(gram, damping))
    factor = torch.linalg.cholesky(inverse_gram[order[:, None], order])
    steps = torch.linalg.solve_triangular(factor, weight.double()[:, order].T, upper=False)
    losses: torch.Tensor = steps.square().sum(1).cumsum(0)
    return losses


def losses_without_refit(weight: torch.Tensor, gram: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return E‖W_R h_R‖² for R the first 1, 2, … channels of `order`: they go and nothing makes up for them."""
    both = (weight.double().T @ weight.double() * gram.double())[order[:, None], order]
    # The sum over the leading n×n corner grows by twice the row left of the diagonal, and the diagonal.
    return (2 * both.tril(-1).sum(1) + both.diagonal()).cumsum(0)
