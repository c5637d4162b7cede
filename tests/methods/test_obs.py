"""Elimination against exhaustive least squares."""

from __future__ import annotations

import pytest
import torch

from compressor.errors import ModelError
from compressor.passes.numerics.elimination import damped, eliminate

DAMPING = 0.01


def problem(channels: int = 10, outputs: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and the second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    inputs = torch.randn(500, channels, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(outputs, channels, generator=generator, dtype=torch.float64)
    return weight, inputs.T @ inputs / len(inputs)


def brute_loss(weight: torch.Tensor, gram: torch.Tensor, kept: list[int]) -> float:
    """E‖(W − W'_S) h‖² with the best W'_S, by normal equations on the damped moments."""
    system = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    best = torch.zeros_like(weight)
    best[:, kept] = torch.linalg.lstsq(system[kept][:, kept], (weight @ system[:, kept]).T).solution.T
    difference = weight - best
    return float(torch.trace(difference @ system @ difference.T))


@pytest.mark.parametrize("group", [1, 3, None])
def test_losses_are_those_of_the_best_refit(group: int | None) -> None:
    weight, gram = problem()
    found = eliminate(weight, gram.clone(), keep=2, damping=DAMPING, group=group)
    for gone in range(1, 9):
        kept = found.kept(10 - gone, 10).tolist()
        assert sorted(kept + found.order[:gone].tolist()) == list(range(10))
        assert float(found.losses[gone - 1]) == pytest.approx(brute_loss(weight, gram, kept), rel=1e-8)


def test_every_single_removal_is_the_cheapest_there_is() -> None:
    weight, gram = problem(seed=1)
    found = eliminate(weight, gram.clone(), keep=3, damping=DAMPING, group=1)
    left = set(range(10))
    for channel in found.order.tolist():
        costs = {c: brute_loss(weight, gram, sorted(left - {c})) for c in left}
        assert channel == min(costs, key=costs.__getitem__)
        left.remove(channel)


def test_a_duplicate_goes_first_and_costs_next_to_nothing() -> None:
    weight, gram = problem()
    twin = list(range(10)) + [4]
    found = eliminate(weight[:, twin], gram[twin][:, twin], keep=9, damping=1e-6, group=1)
    assert found.order[0].item() in (4, 10)
    assert float(found.losses[0]) < 1e-4 * float(found.losses[1])


def test_losses_never_fall_and_order_is_reproducible() -> None:
    weight, gram = problem(channels=120, outputs=16)
    first, second = (eliminate(weight, gram.clone(), keep=1) for _ in range(2))
    assert torch.equal(first.order, second.order) and torch.equal(first.losses, second.losses)
    assert bool((first.losses.diff() >= 0).all())
    assert len(first.kept(7, 120)) == 7


def test_groups_are_nearly_as_good_as_single_steps() -> None:
    weight, gram = problem(channels=120, outputs=16, seed=5)
    single, groups = (eliminate(weight, gram.clone(), keep=60, group=g) for g in (1, None))
    assert float(groups.losses[-1]) < 1.05 * float(single.losses[-1])


def test_float32_moments_do() -> None:
    weight, gram = problem(seed=6)
    narrow = eliminate(weight.float(), gram.float(), keep=3, damping=DAMPING)
    wide = eliminate(weight, gram.clone(), keep=3, damping=DAMPING)
    torch.testing.assert_close(narrow.losses, wide.losses, rtol=1e-4, atol=0)


def test_silent_channels_cost_nothing() -> None:
    found = eliminate(torch.ones(2, 5), torch.zeros(5, 5), keep=2)
    assert len(found.order) == 3


def test_bad_moments_are_refused() -> None:
    weight, gram = problem()
    with pytest.raises(ModelError, match="not finite"):
        eliminate(weight, gram * float("nan"))
    with pytest.raises(ModelError, match="singular"):
        eliminate(torch.ones(1, 3), torch.ones(3, 3), damping=0.0)


def test_damping_is_a_share_of_the_mean_diagonal() -> None:
    gram = torch.diag(torch.tensor([1.0, 3.0]))
    assert damped(gram, 0.5).diagonal().tolist() == [2.0, 4.0]
