"""Rotating and narrowing the residual stream: the mathematics, with no model in sight.

RMSNorm commutes with rotations, so a model whose stream is x may as well carry z = Pᵀ·x for an orthonormal P (SliceGPT,
arXiv 2401.15024, section 3.2): readers become W·P, writers Pᵀ·W. Fewer columns than rows in P make the model narrower.
LayerNorm is RMSNorm behind a mean subtraction, which P takes over when its columns are orthogonal to the ones vector;
when its rows are, too, the narrow stream has mean zero and a stock LayerNorm on it is exact.

Shapes: d is the width before, k after; everything here is float64 unless it is a stream of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.machine.memory import trim_heap

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")


def normed(stream: torch.Tensor, eps: float, *, centre: bool) -> torch.Tensor:
    """Return a stream [..., d] as an RMSNorm (or, with `centre`, a LayerNorm) without scale and shift gives it."""
    if centre:
        stream = stream - stream.mean(-1, keepdim=True)
    return stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + eps)


def fold_scale(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return a reader [out, d] with the scale [d] of the norm before it multiplied in, in float64."""
    return weight.double() * scale.double()


def with_signs(basis: torch.Tensor) -> torch.Tensor:
    """Flip columns so that the entry of largest magnitude in each is positive: eigenvectors come with no sign."""
    peaks = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * torch.where(peaks < 0, -1.0, 1.0).to(basis)


def principal_basis(covariance: torch.Tensor, width: int, damping: float = 0.01) -> torch.Tensor:
    """Return the leading eigenvectors [d, width] of a covariance [d, d], the largest eigenvalue first.

    Damping adds to every eigenvalue alike: it moves no eigenvector, but steadies those of a rank-deficient covariance.

    Raises:
        ModelError: the covariance is not finite.
    """
    covariance = covariance.double()
    if not bool(torch.isfinite(covariance).all()):
        raise ModelError(
            "the covariance of the residual stream is not finite", hint="The model overflows on this data."
        )
    mean = covariance.diagonal().mean()
    eye = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    vectors = torch.linalg.eigh((covariance + covariance.T) / 2 + damping * mean * eye).eigenvectors
    return with_signs(vectors.flip(1)[:, :width].contiguous())


def shared_covariance(covariances: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of covariances, each divided by its trace: every site counts alike, however loud it is."""
    tiny = torch.finfo(torch.float64).tiny
    total = torch.zeros_like(covariances[0], dtype=torch.float64)
    for covariance in covariances:
        total += covariance / covariance.trace().double().clamp_min(tiny)
    return total


class SharedBasis:
    """The span of one basis for all sites, judged by what the loss sees of the part that is dropped.

    At site s the narrow stream Bᵀ·x predicts the whole one as C·B·(BᵀCB)⁻¹·Bᵀx; with second moments C of the stream and
    G of the loss's gradient there, the expected loss rises by about ½·tr(G·(C − C·B·(BᵀCB)⁻¹·BᵀC)), summed over sites.
    Only the span of B counts. PCA is the special case of one site and G = I.
    """

    def __init__(self, covariances: list[torch.Tensor], gradients: list[torch.Tensor], damping: float = 1e-6):
        """Take C and G of every site, [d, d] float64 each, out of both lists, so that they are not held twice.

        `damping` keeps BᵀCB invertible, as a share of the mean diagonal of C.
        """
        self._moments: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._total = 0.0
        while covariances:
            c, g = covariances.pop(0), gradients.pop(0)
            self._total += float((g * c).sum())
            c.diagonal().add_(damping * c.diagonal().mean())
            self._moments.append((c, c @ g @ c))

    def lost(self, basis: torch.Tensor) -> float:
        """Return the share of tr(G·C), summed over sites, that the dropped part holds: 0 at full width, 1 at none."""
        return self._lost(basis, None)

    def _lost(self, basis: torch.Tensor, slope: torch.Tensor | None) -> float:
        """Return the share lost, infinity for a basis of too low a rank; write its gradient [d, k] into `slope`."""
        kept = 0.0
        for covariance, sensitive in self._moments:
            cb, ab = covariance @ basis, sensitive @ basis
            factor, failed = torch.linalg.cholesky_ex(basis.T @ cb)
            if int(failed):
                return math.inf  # dependent columns: infinity makes the line search step back
            inner = torch.cholesky_solve(basis.T @ ab, factor)  # (BᵀCB)⁻¹·BᵀCGCB
            kept += float(inner.trace())
            if slope is not None:
                slope.sub_(torch.cholesky_solve(ab.addmm_(cb, inner, alpha=-1).T, factor).T, alpha=2 / self._total)
        return 1 - kept / self._total

    def improve(self, basis: torch.Tensor, steps: int) -> torch.Tensor:
        """Return an orthonormal basis [d, k] that loses less than `basis`: at most `steps` of L-BFGS from there."""
        if self._total <= 0 or basis.shape[0] == basis.shape[1]:
            return basis
        trim_heap()  # return what the survey has freed before large matrices are allocated
        point = basis.double().clone(memory_format=torch.contiguous_format).requires_grad_(True)
        search = torch.optim.LBFGS([point], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

        def closure() -> float:
            trim_heap()  # each evaluation leaves free pages between the vectors that the search keeps
            slope = torch.zeros_like(point, requires_grad=False)
            value = self._lost(point.detach(), slope)
            point.grad = slope
            return value

        search.step(closure)
        found: torch.Tensor = torch.linalg.qr(point.detach()).Q
        return found if self.lost(found) < self.lost(basis) else basis


def ones_free(width: int) -> torch.Tensor:
    """Return an orthonormal [width, width - 1] whose columns are orthogonal to the ones vector and near the axes.

    It is the Householder reflection that maps the ones direction to the last axis, without its last column.
    """
    direction = torch.full((width,), 1 / math.sqrt(width), dtype=torch.float64)
    direction[-1] -= 1.0
    reflector = direction / direction.norm()
    full: torch.Tensor = torch.eye(width, dtype=torch.float64) - 2 * torch.outer(reflector, reflector)
    return full[:, :-1].contiguous()


def diagonalising(basis: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rotate a basis [d, k] within its span so that Bᵀ·diag(scale)·B is diagonal.

    A head that is tied to the embedding cannot take the final norm's scale [d] in; in such a basis the scale stays what
    a norm's weight can hold, one factor per coordinate.
    """
    inner = basis.T @ (scale.double()[:, None] * basis)
    vectors = torch.linalg.eigh((inner + inner.T) / 2).eigenvectors.flip(1)
    return with_signs(basis @ vectors)


@dataclass(frozen=True)
class Projection:
    """A change of the residual stream's coordinates, x [d] → z [k] = √(k/d)·Pᵀ·x.

    The factor √(k/d) makes mean squares over k coordinates equal to those over d, so that a norm keeps its eps; its
    weight √(d/k) then gives readers Pᵀ·norm(x).

    Attributes:
        matrix: P, [d, k].
    """

    matrix: torch.Tensor

    @classmethod
    def of(cls, basis: torch.Tensor, *, centre: bool) -> Projection:
        """Return the projection on a basis [d, n]; with `centre`, whose columns are orthogonal to ones, n + 1 wide."""
        return cls(basis @ ones_free(basis.shape[1] + 1).to(basis).T if centre else basis)

    @property
    def width(self) -> int:
        """The k of the narrow stream."""
        return int(self.matrix.shape[1])

    @property
    def scale(self) -> float:
        """The √(k/d) of z."""
        return math.sqrt(self.matrix.shape[1] / self.matrix.shape[0])

    def writer(self, weight: torch.Tensor) -> torch.Tensor:
        """Return √(k/d)·Pᵀ·W [k, in] of a writer [d, in]."""
        return self.scale * (self.matrix.T @ weight.double())

    def stream(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [..., d] (embeddings, positions, biases, a dense stream) in the narrow coordinates [..., k]."""
        return rows @ (self.scale * self.matrix).to(rows.dtype)

    def norm_weight(self) -> torch.Tensor:
        """Return the weight [k] of a norm whose own scale has been folded into its readers."""
        return torch.full((self.width,), 1 / self.scale, dtype=torch.float64)

    def shortcut(self, after: Projection) -> torch.Tensor:
        """Return the matrix [k after, k] that carries the stream from these coordinates to those of `after`."""
        return after.scale / self.scale * (after.matrix.T @ self.matrix)


def fit_scale(
    head: torch.Tensor,
    wanted: torch.Tensor,
    gram: torch.Tensor,
    cross: torch.Tensor,
    prior: torch.Tensor,
    damping: float,
) -> torch.Tensor:
    """Fit the weight γ [k] of the norm before a head that must stay as it is.

    Minimises E‖K·x − E·diag(γ)·u‖² + λ‖γ − prior‖²; the normal equations are (EᵀE ∘ H + λI)·γ = (EᵀK ∘ C)·1 + λ·prior.

    Args:
        head: E, [vocabulary, k], the head behind the norm.
        wanted: K, [vocabulary, d], what the dense head makes of the dense normed stream.
        gram: H = E[u uᵀ], [k, k], of the narrow normed stream.
        cross: C = E[u xᵀ], [k, d], with the dense normed stream.
        prior: [k].
        damping: λ over the mean diagonal of the system.
    """
    # Softmax ignores a constant that is added to all logits: the fit need not match it.
    head = head.double() - head.double().mean(0)
    wanted = wanted.double() - wanted.double().mean(0)
    system = (head.T @ head) * gram
    weight = damping * system.diagonal().mean()
    right = ((head.T @ wanted) * cross).sum(1) + weight * prior
    eye = torch.eye(len(system), dtype=torch.float64, device=system.device)
    solved: torch.Tensor = torch.linalg.solve(system + weight * eye, right)
    return solved


def hadamard(order: int) -> torch.Tensor | None:
    """Return a Hadamard matrix [order, order] of ±1, float64, whose first column is all ones; None if none is found.

    Orders 2^a·(q + 1) are covered for q = 0 or a prime with q mod 4 = 3: Paley's construction, doubled as Sylvester
    did (Hedayat and Wallis, Annals of Statistics 6, 1978, sections 2 and 3).
    """
    doublings, base = 0, order
    while base > 1 and not _paley_prime(base - 1):
        if base % 2:
            return None
        doublings, base = doublings + 1, base // 2
    found = torch.ones(1, 1, dtype=torch.float64) if base == 1 else _paley(base - 1)
    for _ in range(doublings):
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found * found[:, :1]


def _paley_prime(q: int) -> bool:
    return q % 4 == 3 and all(q % divisor for divisor in range(3, math.isqrt(q) + 1, 2))


def _paley(q: int) -> torch.Tensor:
    """Return Paley's matrix I + S of order q + 1: S is skew, its core the quadratic characters of differences mod q."""
    squares = torch.full((q,), -1.0, dtype=torch.float64)
    squares[torch.arange(1, q).square() % q] = 1.0
    squares[0] = 0.0
    index = torch.arange(q)
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[1:, 1:] = squares[(index[:, None] - index) % q]
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    return skew + torch.eye(q + 1, dtype=torch.float64)


def random_rotation(width: int, seed: int, *, centre: bool) -> Projection:
    """Return a random change of coordinates of a stream of `width`, from a Hadamard matrix where there is one.

    With `centre` (LayerNorm) it takes the mean off the stream, which is then and stays without one, so that a stock
    LayerNorm behind it is exact.
    """
    generator = torch.Generator().manual_seed(seed)
    found = hadamard(width)
    if found is None:
        start = torch.randn(width, width, generator=generator, dtype=torch.float64)
        start[:, 0] = 1.0 if centre else start[:, 0]
        basis, upper = torch.linalg.qr(start)
        basis = basis * upper.diagonal().sign()
    else:
        basis = found[torch.randperm(width, generator=generator)] / math.sqrt(width)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1
    if centre:
        # The first column is the ones direction: it goes. Signs of rows would take the others out of its complement.
        return Projection.of(basis[:, 1:] * signs[1:], centre=True)
    return Projection.of(basis * signs[:, None], centre=False)
