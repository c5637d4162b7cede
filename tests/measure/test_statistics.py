"""Statistics of resamples against scipy on the resampled data themselves, and what an interval promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from compressor.measure.scores import Quality, quality_of
from compressor.measure.statistics import Correlation, Ratio, Statistic, interval, resampled, value_of


@pytest.mark.parametrize("ranked", [True, False])
def test_a_correlation_counts_a_repeated_sample_as_often_as_it_occurs(ranked: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 20).astype(np.float64), rng.standard_normal(20)
    counts = np.stack([np.bincount(rng.integers(0, 20, 20), minlength=20) for _ in range(30)])
    found = Correlation(a, b, ranked).values(counts.astype(np.float64))
    scipys = scipy.stats.spearmanr if ranked else scipy.stats.pearsonr
    wanted = [scipys(np.repeat(a, row), np.repeat(b, row)).statistic for row in counts]
    assert found == pytest.approx(wanted)


def test_a_ratio_weighs_samples_by_their_denominators() -> None:
    ratio = Ratio(np.array([2.0, 9.0]), np.array([1.0, 3.0]), exponential=True)
    assert value_of(ratio) == pytest.approx(math.exp(11 / 4))
    assert ratio.values(np.array([[2.0, 0.0]])) == pytest.approx([math.exp(2)])


def test_an_interval_is_that_of_the_mean() -> None:
    sample = np.random.default_rng(1).standard_normal(400)
    low, high = interval(resampled({"mean": Ratio(sample, np.ones(400))})["mean"]) or (0.0, 0.0)
    error = scipy.stats.sem(sample)
    assert [low, high] == pytest.approx([sample.mean() - 1.96 * error, sample.mean() + 1.96 * error], abs=0.2 * error)


def test_resamples_are_seeded_and_do_not_depend_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = {"mean": Ratio(np.arange(7.0), np.ones(7))}
    first = resampled(ratio)["mean"]
    assert np.array_equal(first, resampled(ratio)["mean"])
    monkeypatch.setattr("compressor.measure.statistics._CELLS", 8 * 7)
    assert np.array_equal(first, resampled(ratio)["mean"])


def quality(ours: dict[str, Statistic], dense: dict[str, Statistic], finite: bool = True) -> Quality:
    return quality_of(ours, dense, finite=finite, varies=True, entropy=None, samples=next(iter(ours.values())).samples)


def test_changes_from_dense_are_paired() -> None:
    nll = np.random.default_rng(2).uniform(1, 3, 30)
    ours, dense = Ratio(nll + 0.1, np.ones(30), True), Ratio(nll, np.ones(30), True)
    found, _ = quality({"perplexity": ours}, {"perplexity": dense}).intervals()
    assert found["perplexity_increase"] == pytest.approx([math.exp(0.1) - 1] * 2)
    assert found["perplexity"][1] - found["perplexity"][0] > 1


def test_what_cannot_be_told_has_no_interval() -> None:
    values = np.arange(6.0)
    rare = np.array([1.0, 0, 0, 0, 0, 0])  # absent from a third of the resamples
    assert not quality({"spearman": Correlation(values, rare, True)}, {}).intervals()[0]
    assert not quality({"kl": Ratio(values, values)}, {}, finite=False).intervals()[0]
    assert not quality({"kl": Ratio(np.ones(1), np.ones(1))}, {}).intervals()[0]
