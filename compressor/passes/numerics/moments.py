"""Least squares from second moments: the linear map that best makes a target y from what is left of its inputs h.

    W' = (C_S + λP) · (H_SS + λI)⁻¹,   H = E[h hᵀ],  C = E[y hᵀ],  S the inputs that are left, P a prior or 0

A map with a bias sees one more input that is always 1; it is neither damped nor ever removed, so it carries the mean of
whatever was removed. Moments stream: any number of tokens costs memory for H and C alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import DataError, ModelError
from compressor.machine.memory import trim_heap
from compressor.passes.numerics.elimination import check_finite, factor, packed

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

# Second moments are made in strips of so many rows.
_SLICE = 128


def accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, lower: bool = False) -> None:
    """Add leftᵀ·right, summed over the tokens of a batch, to `total` [m, n] float64 in place.

    Products are made in the dtype of the tokens (float32), sums over batches in float64.

    Args:
        total: Σ y·xᵀ over the tokens that have streamed past so far.
        left: y, or w·y where tokens have weights, [tokens, m].
        right: x, [tokens, n].
        lower: make only what lies on or below the diagonal, of a matrix whose other half says the same again.
    """
    if not lower:
        total += left.T @ right
        return
    for start in range(0, right.shape[1], _SLICE):
        end = min(start + _SLICE, right.shape[1])
        total[start:end, :end] += left[:, start:end].T @ right[:, :end]


def weighted(tokens: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return tokens [tokens, width] times their weights [tokens]; as they are where there are none."""
    return tokens if weights is None else tokens * weights[:, None]


def _mean(total: torch.Tensor, count: float) -> torch.Tensor:
    if count <= 0:
        raise DataError("calibration.data: not one token to calibrate on")
    return total / count


class Moments:
    """Weighted sums of h hᵀ, y hᵀ, h, y and y² over tokens, as they stream past (see `accumulate`).

    Attributes:
        count: sum of the tokens' weights.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        """Start with nothing seen of `inputs` signals h and `outputs` targets y."""
        trim_heap()  # return what activations have freed before large matrices are allocated
        self.count = 0.0
        # Only what lies on or below the diagonal counts.
        self._gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self._cross = torch.zeros(outputs, inputs, dtype=torch.float64, device=device)
        self._input_sum = torch.zeros(inputs, dtype=torch.float64, device=device)
        self._target_sum = torch.zeros(outputs, dtype=torch.float64, device=device)
        self._target_square = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """See tokens: inputs [tokens, inputs], targets [tokens, outputs], weights [tokens] (None: 1 each)."""
        weighted_in, weighted_out = weighted(inputs, weights), weighted(targets, weights)
        accumulate(self._gram, weighted_in, inputs, lower=True)
        accumulate(self._cross, weighted_out, inputs)
        self._input_sum += weighted_in.sum(0)
        self._target_sum += weighted_out.sum(0)
        self._target_square += (weighted_out * targets).sum()
        self.count += float(len(inputs) if weights is None else weights.sum())

    @property
    def gram(self) -> torch.Tensor:
        """H, [inputs, inputs] float64, the caller's own."""
        return _mirror(_mean(self._gram, self.count))

    @property
    def cross(self) -> torch.Tensor:
        """C, [outputs, inputs] float64."""
        return _mean(self._cross, self.count)

    @property
    def input_energy(self) -> torch.Tensor:
        """E[h²], the diagonal of H, [inputs] float64."""
        return _mean(self._gram.diagonal(), self.count)

    @property
    def input_mean(self) -> torch.Tensor:
        """E[h], [inputs] float64."""
        return _mean(self._input_sum, self.count)

    @property
    def target_mean(self) -> torch.Tensor:
        """E[y], [outputs] float64."""
        return _mean(self._target_sum, self.count)

    @property
    def target_energy(self) -> float:
        """E‖y‖²."""
        return float(_mean(self._target_square, self.count))

    def join(self, other: Moments) -> None:
        """See what `other` has seen, too."""
        for name in ("_gram", "_cross", "_input_sum", "_target_sum", "_target_square"):
            getattr(self, name).add_(getattr(other, name))
        self.count += other.count

    def error_of(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> float:
        """Return E‖y − W·h − b‖² of a map W [outputs, inputs], b [outputs], relative to E‖y‖²; 0 if y is always 0."""
        map_, cross, energy = weight.to(self._gram), self.cross, self.target_energy
        if energy <= 0:
            return 0.0
        missed = energy - 2 * float((map_ * cross).sum()) + float(((map_ @ self.gram) * map_).sum())
        if bias is not None:
            shift = bias.to(self._gram)
            missed += float(shift @ (shift - 2 * self.target_mean + 2 * map_ @ self.input_mean))
        return missed / energy

    def centred(self) -> Moments:
        """Return the moments of h − E[h] and y − E[y]: what is left to explain once a bias has taken the means."""
        out = Moments(len(self._gram), len(self._cross), self._gram.device)
        out.count = self.count
        h, y = self.input_mean, self.target_mean
        out._gram = self._gram - self.count * torch.outer(h, h)
        out._cross = self._cross - self.count * torch.outer(y, h)
        out._target_square = self._target_square - self.count * y.square().sum()
        return out


def _mirror(square: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle to the upper one in place, strip by strip, without a second matrix."""
    for start in range(0, len(square), _SLICE):
        end = start + _SLICE
        corner = square[start:end, start:end]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        square[start:end, end:] = square[end:, start:end].T
    return square


_RESOLUTION = 1e-5
"""Second moments about the mean below this share of those about zero are rounding of float32 products."""


@dataclass(frozen=True)
class LinearFit:
    """A fitted map.

    Attributes:
        weight: [outputs, inputs kept] float64.
        bias: [outputs] float64, None for a map without one.
        error: E‖y − W'h − b‖² / E‖y − E[y]‖² with a bias, over E‖y‖² without; 0 is exact.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    error: float


def fit(
    moments: Moments,
    kept: torch.Tensor | None = None,
    *,
    damping: float = 0.01,
    bias: bool = False,
    prior: torch.Tensor | None = None,
) -> LinearFit:
    """Fit a map from the inputs `kept` to the target.

    Args:
        moments: of all inputs and the target.
        kept: [n] indices of the inputs that are left, ascending; None: all of them.
        damping: λ over the mean diagonal of H (all inputs, so that λ does not depend on the choice).
        bias: whether the map has a bias; it makes the mean of the target exact.
        prior: [outputs, inputs] weight of all inputs, towards whose kept columns λ pulls instead of towards 0.

    Raises:
        ModelError: the moments are not finite, or singular (damping 0 and inputs that depend on each other).
    """
    trim_heap()
    seen = moments.centred() if bias else moments
    gram, cross = seen.gram, seen.cross
    check_finite(gram)
    # Constant inputs have no variance: with the floor as λ their weights stay at the prior.
    floor = _RESOLUTION * moments.input_energy.mean() if bias and damping else 0.0
    scale = max(damping * gram.diagonal().mean(), floor)
    means = moments.input_mean
    if kept is not None:
        outputs = torch.arange(len(cross), device=kept.device)
        gram, cross, means = packed(gram, kept, kept), packed(cross, outputs, kept), means[kept]
        prior = None if prior is None else prior[:, kept]
    wanted = cross if prior is None else cross + scale * prior.to(cross)
    weight = _solved(gram, scale, wanted)
    del gram
    error = _relative_error(weight, torch.sub(wanted, weight, alpha=float(scale)), cross, seen.target_energy)
    return LinearFit(weight, moments.target_mean - weight @ means if bias else None, error)


def _solved(gram: torch.Tensor, scale: torch.Tensor | float, wanted: torch.Tensor) -> torch.Tensor:
    """Return wanted · (gram + scale·I)⁻¹; `gram` is overwritten, as a copy could double the peak memory."""
    gram.diagonal().add_(scale)
    lower = factor(gram)
    if lower is None:
        raise ModelError("the channels that are left depend on each other linearly", hint="Raise `damping`.")
    return torch.cholesky_solve(wanted.T, lower).T


def _relative_error(weight: torch.Tensor, seen: torch.Tensor, cross: torch.Tensor, energy: float) -> float:
    """E‖y‖² − 2·tr(W Cᵀ) + tr(W H Wᵀ) over E‖y‖² = `energy`; `seen` = W H, overwritten. 0 if y never moves."""
    if energy <= 0:
        return 0.0
    explained = seen.neg_().add_(cross, alpha=2).mul_(weight).sum()
    return max(0.0, 1.0 - float(explained) / energy)


class InputStats:
    """Statistics of one input as it streams past: H = E[w x xᵀ], E[|x|], and peaks of its blocks.

    Attributes:
        count: sum of the tokens' weights.
        group: channels that share a range.
    """

    def __init__(self, width: int, group: int, device: torch.device | str = "cpu") -> None:
        """Start with nothing seen of an input of `width` channels in blocks of `group`."""
        self.group = group
        self.count = 0.0
        # Only what lies on or below the diagonal counts.
        self._gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._abs = torch.zeros(width, dtype=torch.float64, device=device)
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._peaks = torch.zeros(-(-width // group), dtype=torch.float64, device=device)
        self._tokens = 0
        self._cross: torch.Tensor | None = None

    def add(self, inputs: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """See tokens: inputs [tokens, width], weights [tokens] (None: 1 each)."""
        scaled = weighted(inputs, weights)
        accumulate(self._gram, scaled, inputs, lower=True)
        self._sum += scaled.sum(0)
        size = inputs.abs()
        self._abs += size.sum(0)
        self._peaks += torch.stack([part.amax(1).double().square().sum() for part in size.split(self.group, dim=1)])
        self.count += float(len(inputs) if weights is None else weights.sum())
        self._tokens += len(inputs)

    def want(self, wanted: torch.Tensor, inputs: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Note what should be there, or be made, where tokens [tokens, width] come in; [tokens, anything]."""
        if self._cross is None:
            self._cross = self._gram.new_zeros(wanted.shape[1], inputs.shape[1])
        accumulate(self._cross, weighted(wanted, weights), inputs)

    @property
    def cross(self) -> torch.Tensor:
        """E[w y xᵀ] of what was wanted, y, where x came in, [anything, width] float64."""
        assert self._cross is not None, "nothing was wanted"
        return _mean(self._cross, self.count)

    @property
    def mean(self) -> torch.Tensor:
        """E[w x], [width] float64."""
        return _mean(self._sum, self.count)

    @property
    def gram(self) -> torch.Tensor:
        """H, [width, width] float64, the caller's own."""
        return _mirror(_mean(self._gram, self.count))

    @property
    def mean_abs(self) -> torch.Tensor:
        """E[|x|] per channel, [width] float64."""
        return self._abs / max(self._tokens, 1)

    def rounding_error(self, weight: torch.Tensor) -> float:
        """Return E‖W(x − x̂)‖² where x̂ has every block of x rounded to 8-bit codes of its own range.

        The error of rounding is taken as uniform over a step of max|x| / 127, W as [outputs, width].
        """
        steps = (self._peaks / max(self._tokens, 1)) / 127**2 / 12
        return float((weight.double().square().sum(0) * steps.repeat_interleave(self.group)[: weight.shape[1]]).sum())
