"""Optimal Brain Surgeon on the channels of one linear map: which inputs can go, and what their loss costs.

A map y ≈ W·h with second moments H = E[h hᵀ] loses ‖W_:,p‖² / [H⁻¹]_pp (in E‖y − W·h‖²) when channel p goes and the
others make up for it as well as they can; then W ← W − W_:,p [H⁻¹]_p,: / [H⁻¹]_pp and H⁻¹ is downdated alike
(Hassibi & Stork 1993, equation 5, with one column of W as a unit). Backward elimination repeats this. A few channels go
at a time; the joint loss of such a group is tr(W_P [H⁻¹]_PP⁻¹ W_Pᵀ), exact, not the sum of its members' own losses.

Groups are searched for among the cheapest channels only, in their corner of H⁻¹ and WᵀW; the whole of H⁻¹ and W is
downdated once per block of groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.machine.memory import trim_heap

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

# A group is at most this share of the channels left: a larger one would remove channels that could replace each other.
GROUP_SHARE = 1 / 64
# So many channels, as a share of those left, go between two updates of the whole matrices; they are chosen among
# CANDIDATES times as many.
BLOCK_SHARE = 1 / 16
CANDIDATES = 4
# Removed channels stay in the matrices, unused, until they are this share of them: copying more often costs more time.
GONE_SHARE = 1 / 8
# Matrices are packed in strips of so many rows.
_STRIP = 128


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
    if not bool(torch.isfinite(torch.stack(gram.aminmax())).all()):  # the extremes hold every NaN
        raise ModelError("second moments of the activations are not finite", hint="The model overflows on this data.")


def damped(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """Return H + λI in float64 with λ = damping · mean diagonal of H.

    Args:
        gram: [channels, channels] second moments.
        damping: share of the mean diagonal, dimensionless.

    Raises:
        ModelError: the second moments are not finite.
    """
    return damp(gram.to(torch.float64, copy=True), damping)


def damp(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """Return `gram` + λI as `damped` does, computed in place if `gram` is float64 and contiguous."""
    check_finite(gram)
    out = gram.to(torch.float64).contiguous()
    mean = out.diagonal().mean()
    # Where all inputs are zero, any channel can go: the identity in place of λI keeps the matrix invertible.
    out.diagonal().add_(damping * mean if float(mean) > 0 else torch.ones_like(mean))
    return out


def factor(matrix: torch.Tensor) -> torch.Tensor | None:
    """Return L with `matrix` = L·Lᵀ in the memory of `matrix`; None where it is singular to working precision.

    Args:
        matrix: [n, n] symmetric and contiguous; L overwrites it.
    """
    # Linear algebra wants columns next to each other; a symmetric matrix is its own transpose.
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix.mT, out=(matrix.mT, info))
    return None if int(info) else matrix.mT


def invert(matrix: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a symmetric positive definite matrix in its memory.

    Args:
        matrix: [n, n], contiguous; the inverse overwrites it.

    Raises:
        ModelError: it is singular to working precision.
    """
    lower = factor(matrix)
    if lower is None:
        raise ModelError(
            "the second moments of the activations are singular", hint="Raise `damping` or give more calibration data."
        )
    torch.cholesky_inverse(lower, out=lower)
    return matrix


def eliminate(
    weight: torch.Tensor,
    gram: torch.Tensor,
    *,
    keep: int = 1,
    damping: float = 0.01,
    group: int | None = None,
) -> Elimination:
    """Remove channels one group after another until `keep` are left.

    Args:
        weight: [out, channels], the least-squares map W (damped as here) whose inputs are to go.
        gram: [channels, channels] second moments H of the inputs; overwritten: it may be as large as all else.
        keep: how many channels stay, at least 1.
        damping: λ over the mean diagonal of H.
        group: channels that go at a time; None takes 1/64 of those left.

    Raises:
        ModelError: the second moments are not finite, or singular in spite of damping.
    """
    trim_heap()  # return what activations have freed before large matrices are allocated
    channels = weight.shape[1]
    matrix = weight.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    state = _State(matrix, invert(damp(gram, damping)))
    while state.count > keep:
        share = group or max(1, int(state.count * GROUP_SHARE))
        state.remove(min(max(share, int(state.count * BLOCK_SHARE)), state.count - keep), share)
    gone = channels - keep
    return Elimination(state.order[:gone].clone(), state.losses[:gone].cumsum(0))


class _State:
    """A map during an elimination: the channels that are left, and the order and losses of the others.

    Attributes:
        count: how many channels are left.
        order: [channels] those that have gone, in order; the rest is not set. `losses`: what each of them cost.
    """

    def __init__(self, target: Any, inverse_gram: Any) -> None:
        self.count = target.shape[1]
        self.target = target  # [out, columns]: the channels that are left and a few that have gone
        self.inverse = inverse_gram  # [columns, columns]
        self.channels = torch.arange(self.count, device=target.device)  # which channel a column is of
        self.gone = torch.zeros(self.count, dtype=torch.bool, device=target.device)
        # Allocated once, at full length: small tensors between large temporary ones fragment the heap.
        self.order = torch.empty_like(self.channels)
        self.losses = torch.empty(self.count, dtype=torch.float64, device=target.device)

    def remove(self, count: int, group: int) -> None:
        """Remove the `count` channels whose loss is least, the cheapest first, looking anew after each `group`."""
        norms = torch.linalg.vector_norm(self.target, dim=0)
        costs = norms.square_().div_(self.inverse.diagonal()).masked_fill_(self.gone, torch.inf)
        going = costs.argsort(stable=True)[: min(CANDIDATES * count, self.count) if group < count else count]
        if group < count:
            columns = self.target[:, going]
            going = going[_cheapest(columns.T @ columns, self.inverse[going[:, None], going], count, group)]
        lower = torch.linalg.cholesky(self.inverse[going[:, None], going])  # (count, count)
        # Columns of W_P L⁻ᵀ: the square of column i is what channel i costs once those before it have gone.
        across = torch.linalg.solve_triangular(lower, self.inverse[going], upper=False)  # (count, columns)
        steps = torch.linalg.solve_triangular(lower, self.target[:, going].T, upper=False)  # (count, out)
        done = slice(len(self.order) - self.count, len(self.order) - self.count + count)
        self.order[done], self.losses[done] = self.channels[going], steps.square().sum(1)
        self.target.addmm_(steps.T, across, alpha=-1)
        self.inverse.addmm_(across.T, across, alpha=-1)
        self.gone[going] = True
        self.count -= count
        if self.count < (1 - GONE_SHARE) * len(self.gone):
            self._drop_gone()

    def _drop_gone(self) -> None:
        left = (~self.gone).nonzero().squeeze(1)
        self.target = packed(self.target, torch.arange(len(self.target), device=left.device), left)
        self.inverse = packed(self.inverse, left, left)
        self.channels, self.gone = self.channels[left], self.gone[left]


def _cheapest(squares: torch.Tensor, inverse: torch.Tensor, count: int, group: int) -> torch.Tensor:
    """Return the `count` candidates that go, in order, `group` at a time.

    Args:
        squares: [n, n] WᵀW of the candidates' columns; overwritten.
        inverse: [n, n] H⁻¹ of the candidates; overwritten.
        count: how many go.
        group: how many go between two looks at the costs.
    """
    gone = torch.zeros(len(squares), dtype=torch.bool, device=squares.device)
    order: list[torch.Tensor] = []
    for start in range(0, count, group):
        costs = (squares.diagonal() / inverse.diagonal()).masked_fill_(gone, torch.inf)
        going = costs.argsort(stable=True)[: min(group, count - start)]
        order.append(going)
        gone[going] = True
        lower = torch.linalg.cholesky(inverse[going[:, None], going])
        across, inner = torch.linalg.solve_triangular(
            lower, torch.cat([inverse[going], squares[going]], 1), upper=False
        ).chunk(2, dim=1)  # both (group, n)
        inverse.addmm_(across.T, across, alpha=-1)
        # W loses Sᵀ·across, S = L⁻¹W_Pᵀ, so WᵀW loses acrossᵀ·SW and its transpose and gets back acrossᵀ·SSᵀ·across.
        own = torch.linalg.solve_triangular(lower, inner[:, going].T, upper=False)
        half = inner - own @ across / 2
        change = across.T @ half
        squares.sub_(change).sub_(change.T)
    return torch.cat(order)


def packed(matrix: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return matrix[rows][:, columns], both ascending, in the memory of `matrix`, which is contiguous.

    Packed entries never overwrite entries that are still to be read, so one strip is all the extra memory.
    """
    flat, width = matrix.view(-1), len(columns)
    for start in range(0, len(rows), _STRIP):
        strip = matrix[rows[start : start + _STRIP, None], columns]
        flat[start * width : start * width + strip.numel()] = strip.view(-1)
    return flat[: len(rows) * width].view(len(rows), width)


def losses_in_order(weight: torch.Tensor, gram: torch.Tensor, order: torch.Tensor, *, damping: float) -> torch.Tensor:
    """Return the losses of `Elimination` for channels that go in a given order.

    Args:
        weight: [out, channels], the least-squares map.
        gram: [channels, channels] second moments of its inputs; overwritten.
        order: [n] indices of the channels, the first to go first.
        damping: λ over the mean diagonal of the second moments.

    Raises:
        ModelError: the second moments are not finite, or singular in spite of damping.
    """
    inverse_gram = invert(damp(gram, damping))
    lower = torch.linalg.cholesky(inverse_gram[order[:, None], order])
    steps = torch.linalg.solve_triangular(lower, weight.double()[:, order].T, upper=False)
    losses: torch.Tensor = steps.square().sum(1).cumsum(0)
    return losses


def losses_without_refit(weight: torch.Tensor, gram: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return E‖W_R h_R‖² for R the first 1, 2, … channels of `order`: they go and nothing makes up for them."""
    both = (weight.double().T @ weight.double() * gram.double())[order[:, None], order]
    # The sum over the leading n×n corner grows by twice the row left of the diagonal, and the diagonal.
    return (2 * both.tril(-1).sum(1) + both.diagonal()).cumsum(0)
