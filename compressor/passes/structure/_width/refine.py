"""Refits the rows of an FFN's readers so that the block's output, not their own, comes nearest to its target.

With δU added to a reader's rows, channel j's signal moves by s_j(t)·(δU_j · z_t), where z is what the reader reads and
s_j = ∂h_j/∂(U_j·z): the activated gate for an up projection (then this is exact), else a derivative
(then it is a Gauss–Newton step). The output's error changes by W·(s ∘ δU z), linear in δU, so

    min over δU of  E w‖r − W·(s ∘ δU z)‖² + λ Σ_j d_j ‖δU_j‖²,    d_j = E[w s_j²]·‖W_:,j‖²

is a least-squares problem; conjugate gradients solve it matrix-free, preconditioned by d_j⁻¹ ⊗ (E[w z zᵀ]+λ)⁻¹. This is
a fit to the dense block's output over calibration tokens: no labels, no loss of the model, no learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.machine.memory import trim_heap
from compressor.passes.numerics.moments import Moments, accumulate
from compressor.passes.surgery import slots
from compressor.passes.surgery.observe import channel_signals, reader_signal, unpadded
from compressor.walk.calls import observing

if TYPE_CHECKING:
    import torch

    from compressor.walk import BlockView
    from compressor.walk.activations import ActivationStore
else:
    torch = lazy("torch")

CG_STEPS = 2
# The gradient decides where the minimum is and needs all batches; a part of them is enough for the curvature.
CURVATURE_SHARE = 2
# λ over the mean diagonal of E[w z zᵀ]. Rows have many free numbers for the tokens there are: less damping fits noise.
DAMPING = 0.1


@dataclass(frozen=True)
class Sample:
    """The batches that a refit looks at.

    Attributes:
        batches: their numbers.
        targets: per batch, what the FFN should add to the middle, [tokens, width] (tokens without padding).
        weights: per batch, the tokens' weights, [tokens, 1].
    """

    batches: list[int]
    targets: ActivationStore
    weights: dict[int, torch.Tensor]


def refine_readers(block: BlockView, sample: Sample) -> tuple[float, Moments]:
    """Refit every reader of a block's FFN in place, the up projection before the gate.

    Returns:
        What is left of the error, as a share of the error before (1 where no step helped), and the moments of the
        channels, as they now are, over the sample.
    """
    paths = list(reversed(block.family.ffn.reader_paths))
    factors, residuals = block.scratch(), block.scratch()
    first = error = _look(block, sample, paths[0], factors, residuals)
    problem = _Problem(block, sample, factors, residuals)
    for path, after in zip(paths, [*paths[1:], None], strict=True):
        step, slope = problem.solve()
        start, offset = slots.read(block.module, path), slots.read_bias(block.module, path)
        scale = 1.0
        while True:
            slots.write(block.module, path, start + step * scale, offset)
            seen = moments_of(block) if after is None else None
            found = _look(block, sample, after, factors, residuals, seen)
            if found <= error or scale == 0:
                break
            # Too far: once more, to where a parabola would be least, else not at all.
            scale = vertex(error, found, slope) if scale == 1 else 0.0
        error = found
    factors.clear()
    residuals.clear()
    assert seen is not None  # set in the last turn, where `after` is None
    return error / first if first > 0 else 1.0, seen


def vertex(before: float, after: float, slope: float) -> float:
    """Return where a parabola is least that is `before` at 0, with the derivative −2·`slope`, and `after` at 1."""
    return slope / (after - before + 2 * slope)


def moments_of(block: BlockView) -> Moments:
    """Return moments, with nothing seen, of the FFN's channels and what its writer adds to the stream."""
    writer = slots.read(block.module, block.family.ffn.writer)
    return Moments(writer.shape[1], writer.shape[0], writer.device)


def _look(
    block: BlockView,
    sample: Sample,
    path: str | None,
    factors: ActivationStore,
    residuals: ActivationStore,
    moments: Moments | None = None,
) -> float:
    """Return the weighted squared error; store what the FFN misses of its target and, for the reader at `path`, s."""
    trim_heap()  # return what the last step has freed before this one allocates
    return sum(_look_at(block, sample, path, k, factors, residuals, moments) for k in sample.batches)


def _look_at(
    block: BlockView,
    sample: Sample,
    path: str | None,
    k: int,
    factors: ActivationStore,
    residuals: ActivationStore,
    moments: Moments | None,
) -> float:
    ffn = block.family.ffn
    signals, factor = _signals_and_factor(block, path, k)
    if moments is not None:
        moments.add(signals, sample.targets[k].to(signals.device), sample.weights[k][:, 0])
    writer, offset = slots.read(block.module, ffn.writer), slots.read_bias(block.module, ffn.writer)
    made = torch.nn.functional.linear(signals, writer, offset)
    residual = sample.targets[k].to(made.device) - made
    if factor is not None:
        residuals[k], factors[k] = residual, factor
    return float((residual.square() * sample.weights[k]).sum())


def _signals_and_factor(block: BlockView, path: str | None, k: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return h and s = ∂h/∂(output of the reader at `path`), both [tokens, channels].

    Channels do not mix, so the gradient of their sum holds every s.
    """
    middle = block.current_middle(k)
    mask = block.token_mask(k, like=middle)
    if path is None:
        return unpadded(channel_signals(block, block.module, middle, k), mask), None
    leaves: list[torch.Tensor] = []

    def leaf(_: str, out: torch.Tensor) -> torch.Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[0]

    with torch.enable_grad(), observing(block.module, [path], leaf, outputs=True):
        signals = channel_signals(block, block.module, middle, k)
        factor = torch.autograd.grad(signals.sum(), leaves[0])[0]
    return unpadded(signals.detach(), mask), unpadded(factor.reshape(signals.shape), mask)


class _Problem:
    """The normal equations of δU, never formed: products with them stream over batches.

    Attributes:
        inverse: (E[w z zᵀ] + λ)⁻¹, [width, width]; `ridge` is λ. Both are those of what all readers read.
    """

    def __init__(self, block: BlockView, sample: Sample, factors: ActivationStore, residuals: ActivationStore) -> None:
        self.block, self.sample, self.factors, self.residuals = block, sample, factors, residuals
        self.writer = slots.read(block.module, block.family.ffn.writer)
        self.tokens = sum(float(sample.weights[k].sum()) for k in sample.batches)
        width = block.layer.residual[1]
        moment = torch.zeros(width, width, dtype=torch.float64, device=self.writer.device)
        for k in sample.batches:
            z = self._read(k)
            accumulate(moment, z * sample.weights[k], z)
        moment /= self.tokens
        self.ridge = float(DAMPING * moment.diagonal().mean())
        moment.diagonal().add_(self.ridge + 1e-30)
        self.inverse = torch.linalg.inv(moment).float()

    def _read(self, k: int) -> torch.Tensor:
        """Return z, what the readers read of batch k, [tokens, width]."""
        read = reader_signal(self.block, self.block.module, self.block.current_middle(k), self.block.family.ffn.norm)
        return unpadded(read, self.block.token_mask(k, like=read))

    def _gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return minus half the gradient at δU = 0, [channels, width], and d, [channels, 1]."""
        loud = torch.zeros(self.writer.shape[1], dtype=torch.float64, device=self.writer.device)
        total = torch.zeros(self.writer.shape[1], len(self.inverse), device=self.writer.device)
        for k in self.sample.batches:
            s, w = self.factors[k].to(loud.device), self.sample.weights[k]
            loud += (s.square() * w).sum(0)
            total += (self.residuals[k].to(s.device) @ self.writer).mul_(s * w).T @ self._read(k)
        scale = (loud / self.tokens).float() * self.writer.square().sum(0)
        # A channel that is zero in the whole sample keeps its weights; the floor keeps the division defined.
        return total / self.tokens, scale.clamp_min(1e-9 * float(scale.max()) + 1e-30)[:, None]

    def _product(self, direction: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the curvature times δU, from every CURVATURE_SHARE-th batch: one quadratic form for all steps."""
        trim_heap()
        total, tokens = torch.zeros_like(direction), 0.0
        for k in self.sample.batches[::CURVATURE_SHARE]:
            z, s, w = self._read(k), self.factors[k].to(total.device), self.sample.weights[k]
            made = (z @ direction.T).mul_(s) @ self.writer.T
            total += (made @ self.writer).mul_(s * w).T @ z
            tokens += float(w.sum())
        return total / tokens + self.ridge * scale * direction

    def solve(self) -> tuple[torch.Tensor, float]:
        """Return δU [channels, width] after CG_STEPS steps of preconditioned conjugate gradients from 0, and a slope.

        The error of a share x of δU begins as error − 2·x·slope.
        """
        trim_heap()
        left, scale = self._gradient()
        found, downhill = torch.zeros_like(left), left
        better = left @ self.inverse / scale
        direction, level = better, float((left * better).sum())
        for _ in range(CG_STEPS):
            product = self._product(direction, scale)
            curvature = float((direction * product).sum())
            if curvature <= 0 or level <= 0:
                break
            found = found + direction * (level / curvature)
            left = left - product * (level / curvature)
            better = left @ self.inverse / scale
            level, before = float((left * better).sum()), level
            direction = better + direction * (level / before)
        return found, self.tokens * float((downhill * found).sum())
