"""Widths of blocks: exact totals, bounds, and the least loss among all possible widths."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import ModelError
from compressor.passes.numerics.allocation import angular, greedy, proportional, uniform, width_budget

BEFORE = [688] * 6


@pytest.mark.parametrize("sparsity", [0.2, 0.3, 0.5, 0.77])
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_the_total_is_the_nearest_multiple(sparsity: float, multiple: int) -> None:
    budget = width_budget(BEFORE, sparsity, multiple=multiple)
    assert abs(budget.total - sum(BEFORE) * (1 - sparsity)) <= multiple / 2
    assert sum(uniform(budget)) == budget.total
    assert max(uniform(budget)) - min(uniform(budget)) <= multiple


def test_alike_blocks_stay_alike() -> None:
    budget = width_budget(BEFORE, 0.3, multiple=16, alike=True)
    assert uniform(budget) == [480] * 6


def test_widths_that_are_no_multiple() -> None:
    budget = width_budget([172] * 5, 0.01, multiple=8)
    assert budget.total == 5 * 168
    assert uniform(budget) == [168] * 5
    assert greedy(budget, [[1.0] * 172] * 5) == [168] * 5


@given(
    before=st.lists(st.integers(16, 120), min_size=1, max_size=6),
    sparsity=st.floats(0.05, 0.8),
    multiple=st.sampled_from([1, 4, 8]),
    data=st.data(),
)
def test_any_shares_give_an_exact_total_within_bounds(
    before: list[int], sparsity: float, multiple: int, data: st.DataObject
) -> None:
    try:
        budget = width_budget(before, sparsity, multiple=multiple)
    except ModelError:
        return
    shares = data.draw(st.lists(st.floats(0, 100), min_size=len(before), max_size=len(before)))
    curves = [
        list(itertools.accumulate(data.draw(st.lists(st.floats(0, 9), min_size=width, max_size=width))))
        for width in before
    ]
    for widths in (proportional(budget, shares), angular(budget, shares), greedy(budget, curves)):
        assert sum(widths) == budget.total
        for width, most in zip(widths, budget.most, strict=True):
            assert budget.floor <= width <= most
            assert width % multiple == 0


def test_proportional_follows_shares_and_gives_remainders_to_the_largest() -> None:
    budget = width_budget([100] * 3, 0.5, multiple=10)
    assert proportional(budget, [1.0, 2.0, 2.0]) == [30, 60, 60]
    assert proportional(budget, [1.0, 1.0, 1.26]) == [50, 40, 60]
    assert proportional(budget, [0.0, 1.0, 1.0]) == [10, 70, 70]


def test_angular_gives_more_to_blocks_that_turn_the_stream_more() -> None:
    budget = width_budget([100] * 4, 0.4, multiple=1)
    distances = [0.10, 0.14, 0.12, 0.20]
    widths = angular(budget, distances)
    assert sorted(range(4), key=lambda i: widths[i]) == sorted(range(4), key=lambda i: distances[i])
    mean = sum(distances) / 4
    spread = math.sqrt(sum((d - mean) ** 2 for d in distances) / 4)
    sigmoids = [1 / (1 + math.exp(-(d - mean) / (3 * spread))) for d in distances]
    expected = [240 * s / sum(sigmoids) for s in sigmoids]
    assert angular(budget, distances, temperature=3) == pytest.approx(expected, abs=1)
    assert angular(budget, distances, temperature=1e6) == [60] * 4
    assert angular(budget, [0.1] * 4) == [60] * 4


def test_angular_does_not_depend_on_the_scale_of_distances() -> None:
    budget = width_budget([100] * 4, 0.4, multiple=1)
    distances = [0.10, 0.14, 0.12, 0.20]
    assert angular(budget, [7 * d for d in distances]) == angular(budget, distances)


def test_greedy_is_the_optimum_on_convex_curves() -> None:
    curves = [[a * (n / 12) ** p for n in range(1, 13)] for a, p in ((3.0, 2.0), (1.0, 1.5), (8.0, 4.0))]
    budget = width_budget([12] * 3, 0.5, multiple=2)

    def loss(widths: tuple[int, ...]) -> float:
        return sum(c[11 - w] if w < 12 else 0.0 for c, w in zip(curves, widths, strict=True))

    possible = [w for w in itertools.product(range(2, 13, 2), repeat=3) if sum(w) == 18]
    assert loss(tuple(greedy(budget, curves))) == pytest.approx(min(map(loss, possible)))


def test_greedy_looks_past_a_bump() -> None:
    bump = [5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7, 5.8, 5.9]
    line = [2.0 * n for n in range(1, 11)]
    budget = width_budget([10, 10], 0.4, multiple=1)
    assert greedy(budget, [bump, line]) == [2, 10]


@pytest.mark.parametrize(
    ("before", "sparsity", "multiple", "message"),
    [([6, 40], 0.5, 8, "round_to"), ([40, 40], 0.01, 8, "nothing would go"), ([40, 40], 0.95, 8, "Lower sparsity")],
)
def test_refusals(before: list[int], sparsity: float, multiple: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        width_budget(before, sparsity, multiple=multiple)


def test_shares_must_be_numbers() -> None:
    with pytest.raises(ModelError, match="finite"):
        proportional(width_budget([40, 40], 0.5), [1.0, float("nan")])
