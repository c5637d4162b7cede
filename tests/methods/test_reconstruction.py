"""Least squares from streamed moments against least squares over all tokens at once."""

from __future__ import annotations

import pytest
import torch

from compressor.errors import DataError, ModelError
from compressor.passes.numerics.elimination import eliminate
from compressor.passes.numerics.moments import Moments, accumulate, fit, weighted
from tests.live import LiveBytes

KEPT = torch.tensor([0, 2, 3, 6])


def tokens(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs [400, 8] with a mean, targets [400, 3] and weights [400]."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, 8, generator=generator, dtype=torch.float64) + 0.7
    inputs = inputs @ torch.randn(8, 8, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.randn(8, 3, generator=generator, dtype=torch.float64)
    targets = targets + torch.randn(400, 3, generator=generator, dtype=torch.float64) + 2.0
    return inputs, targets, torch.rand(400, generator=generator, dtype=torch.float64)


def streamed(inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> Moments:
    """Feed tokens in uneven batches."""
    moments = Moments(inputs.shape[1], targets.shape[1])
    for start, end in ((0, 7), (7, 150), (150, 400)):
        moments.add(inputs[start:end], targets[start:end], None if weights is None else weights[start:end])
    return moments


def ridge(inputs: torch.Tensor, targets: torch.Tensor, penalty: float, prior: torch.Tensor) -> torch.Tensor:
    """Solve min ‖Y − X Wᵀ‖²/n + λ‖W − P‖² as one stacked least-squares problem, by QR."""
    scale = len(inputs) ** -0.5
    left = torch.cat([inputs * scale, penalty**0.5 * torch.eye(inputs.shape[1], dtype=torch.float64)])
    right = torch.cat([targets * scale, penalty**0.5 * prior.T])
    return torch.linalg.lstsq(left, right, driver="gelsd").solution.T


def test_without_a_bias() -> None:
    inputs, targets, _ = tokens()
    found = fit(streamed(inputs, targets), KEPT, damping=0.02)
    penalty = 0.02 * float(inputs.square().mean())
    expected = ridge(inputs[:, KEPT], targets, penalty, torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(found.weight, expected)
    assert found.bias is None
    error = (targets - inputs[:, KEPT] @ expected.T).square().sum() / targets.square().sum()
    assert found.error == pytest.approx(float(error), rel=1e-8)


def test_with_a_bias_the_constant_input_is_not_damped() -> None:
    inputs, targets, _ = tokens(1)
    found = fit(streamed(inputs, targets), KEPT, damping=0.05, bias=True)
    spread_in, spread_out = inputs - inputs.mean(0), targets - targets.mean(0)
    penalty = 0.05 * float(spread_in.square().mean())
    expected = ridge(spread_in[:, KEPT], spread_out, penalty, torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(found.weight, expected)
    assert found.bias is not None
    made = inputs[:, KEPT] @ found.weight.T + found.bias
    torch.testing.assert_close(made.mean(0), targets.mean(0))
    assert found.error == pytest.approx(float((targets - made).square().sum() / spread_out.square().sum()), rel=1e-8)


def test_weights_are_repeats() -> None:
    inputs, targets, _ = tokens(2)
    repeats = torch.arange(400) % 3
    weighted = fit(streamed(inputs, targets, repeats.double()), KEPT, bias=True)
    repeated = [t.repeat_interleave(repeats, dim=0) for t in (inputs, targets)]
    moments = Moments(8, 3)
    moments.add(*repeated)
    torch.testing.assert_close(weighted.weight, fit(moments, KEPT, bias=True).weight)


def test_a_strong_prior_wins_and_a_weak_one_does_not_matter() -> None:
    inputs, targets, _ = tokens(3)
    prior = torch.arange(24.0).reshape(3, 8)
    moments = streamed(inputs, targets)
    torch.testing.assert_close(fit(moments, KEPT, damping=1e9, prior=prior).weight, prior[:, KEPT].double())
    expected = ridge(inputs[:, KEPT], targets, 0.1 * float(inputs.square().mean()), prior[:, KEPT].double())
    torch.testing.assert_close(fit(moments, KEPT, damping=0.1, prior=prior).weight, expected)


def test_all_inputs_give_an_exact_map_back() -> None:
    inputs, _, _ = tokens(4)
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = fit(streamed(inputs, inputs @ weight.T + 3.0), torch.arange(8), damping=0.0, bias=True)
    torch.testing.assert_close(found.weight, weight)
    assert found.bias is not None
    torch.testing.assert_close(found.bias, torch.full((5,), 3.0, dtype=torch.float64))
    assert found.error < 1e-9


def test_refusals() -> None:
    with pytest.raises(DataError, match="not one token"):
        fit(Moments(8, 3), KEPT)
    inputs, targets, _ = tokens()
    with pytest.raises(ModelError, match="Raise `damping`"):
        twice = inputs[:, [0, 0, 0, 0, 0, 0, 0, 0]]
        fit(streamed(twice, targets), KEPT, damping=0.0)
    with pytest.raises(ModelError, match="not finite"):
        fit(streamed(inputs * float("inf"), targets), KEPT)


def test_all_inputs_are_every_index() -> None:
    inputs, targets, _ = tokens()
    moments = streamed(inputs, targets)
    whole, listed = fit(moments, bias=True), fit(moments, torch.arange(8), bias=True)
    assert torch.equal(whole.weight, listed.weight) and whole.error == listed.error
    assert torch.equal(moments.gram, streamed(inputs, targets).gram), "a fit must leave the moments as they are"


@pytest.mark.parametrize("lower", [False, True])
def test_sums_weigh_tokens(lower: bool) -> None:
    x, w = torch.randn(40, 150, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    total = torch.zeros(150, 150, dtype=torch.float64)
    for part in (slice(0, 7), slice(7, 40)):
        accumulate(total, weighted(x[part], w[part]), x[part], lower=lower)
    expected = sum(w[i] * torch.outer(x[i], x[i]) for i in range(40))
    torch.testing.assert_close(total.tril(), torch.as_tensor(expected).tril())
    assert lower or torch.equal(weighted(x, None).T @ x, x.T @ x) and torch.allclose(total, total.T)


def test_moments_are_symmetric_over_several_strips() -> None:
    inputs = torch.randn(50, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments(300, 0)
    moments.add(inputs, inputs[:, :0])
    assert torch.equal(moments.gram, moments.gram.T)
    torch.testing.assert_close(moments.gram, inputs.T @ inputs / 50)


def test_few_whole_matrices_at_once() -> None:
    """A fit adds the moments, factored in their place, an elimination holds those it is given and a strip."""
    inputs = torch.randn(600, 512, generator=torch.Generator().manual_seed(0))
    moments = Moments(512, 4)
    moments.add(inputs, inputs[:, :4])
    matrix = 512 * 512 * 8
    with LiveBytes() as live:
        found = fit(moments)
    assert live.peak < 1.2 * matrix
    gram = moments.gram
    with LiveBytes() as live:
        eliminate(found.weight, gram, keep=200)
    assert live.peak < 1.5 * matrix
