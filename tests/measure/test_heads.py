"""Metrics of classification heads against scipy and plain counting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from transformers import BertConfig, ViTConfig

from compressor.architectures.tasks import head_of
from compressor.data.kinds import Batches, Ids, Inputs, SetData, ValueData
from compressor.errors import DataError, ModelError
from compressor.measure.evaluation import measure
from compressor.measure.runner import Array


@dataclass
class Outputs:
    """A model whose outputs are a table, looked up by the first token."""

    table: Any
    task: str = "text-classification"
    folder: Path = Path("fake")
    left_padding: bool = False
    inputs: str = "tokens"

    def forward(self, inputs: Inputs) -> Array:
        return np.asarray(self.table[inputs["input_ids"][:, 0]], dtype=np.float32)

    def pooled(self, inputs: Inputs) -> Array | None:
        return None

    def extend(self, inputs: Inputs, past: Any = None) -> tuple[Array, Any]:
        raise NotImplementedError

    def generate(self, ids: Ids, new_tokens: int) -> Ids:
        raise NotImplementedError


RNG = np.random.default_rng(5)
DENSE = RNG.standard_normal((20, 4)).astype(np.float32)
OURS = (DENSE + 0.3 * RNG.standard_normal((20, 4))).astype(np.float32)
BATCHES = Batches(lambda: iter([{"input_ids": np.arange(i, i + 10)[:, None]} for i in (0, 10)]), 2)


def test_one_number_is_judged_by_its_order_and_its_error() -> None:
    gold, a, b = RNG.standard_normal(20), OURS[:, :1], DENSE[:, :1]
    found = measure(Outputs(a), ValueData(BATCHES, gold), Outputs(b))
    for side, outputs in ((found.ours, a), (found.dense, b)):
        assert side["spearman"] == pytest.approx(scipy.stats.spearmanr(outputs[:, 0], gold).statistic)
        assert side["pearson"] == pytest.approx(scipy.stats.pearsonr(outputs[:, 0].astype(float), gold).statistic)
    assert found.ours["rank"] == pytest.approx(scipy.stats.spearmanr(a[:, 0], b[:, 0]).statistic)
    error = np.sqrt(np.mean((a - b) ** 2)) / b.std()
    assert found.ours["relative_error"] == pytest.approx(float(error), rel=1e-5)
    assert found.finite and found.varies and found.entropy is None
    assert {"spearman", "spearman_drop", "rank", "relative_error"} <= set(found.intervals()[0])


def test_labels_that_hold_together_are_judged_by_sigmoids() -> None:
    holds = RNG.random((20, 4)) < 0.4
    found = measure(Outputs(OURS), SetData(BATCHES, holds), Outputs(DENSE))
    p, q = (scipy.special.expit(x.astype(np.float64)) for x in (DENSE, OURS))
    hits = int(((q > 0.5) & holds).sum())
    assert found.ours["f1"] == pytest.approx(2 * hits / (int((q > 0.5).sum()) + int(holds.sum())))
    wanted = scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)
    assert found.ours["kl"] == pytest.approx(wanted.mean())
    entropy = (scipy.special.entr(q) + scipy.special.entr(1 - q)).mean() / math.log(2)
    assert found.entropy == pytest.approx(entropy)
    assert set(found.dense) == {"f1"} and "f1_drop" in found.intervals()[0]


def test_equal_models_are_not_told_apart() -> None:
    values = measure(Outputs(OURS[:, :1]), ValueData(BATCHES, np.arange(20.0)), Outputs(OURS[:, :1])).ours
    assert (values["rank"], values["relative_error"]) == (pytest.approx(1.0), 0.0)
    assert measure(Outputs(OURS), SetData(BATCHES, OURS > 0), Outputs(OURS)).ours == {"f1": 1.0, "kl": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_bad_output_spoils_every_metric(value: float) -> None:
    bad = OURS.copy()
    bad[3, 0] = value
    for data, columns in ((ValueData(BATCHES, np.arange(20.0)), 1), (SetData(BATCHES, OURS > 0), 4)):
        found = measure(Outputs(bad[:, :columns]), data, Outputs(DENSE[:, :columns]))
        assert not found.finite and all(math.isnan(metric) for metric in found.ours.values()), found.ours


def test_data_must_fit_the_outputs() -> None:
    for data in (ValueData(BATCHES, np.arange(20.0)), SetData(BATCHES, OURS[:, :3] > 0)):
        with pytest.raises(DataError, match="outputs"):
            measure(Outputs(OURS), data)


@pytest.mark.parametrize(
    ("labels", "problem", "kind"),
    [
        (1, None, "values"),
        (1, "regression", "values"),
        (1, "multi_label_classification", "label sets"),
        (3, None, "labels"),
        (3, "single_label_classification", "labels"),
        (3, "multi_label_classification", "label sets"),
    ],
)
def test_the_head_follows_from_the_config_as_in_transformers(labels: int, problem: str | None, kind: str) -> None:
    for config, task in ((BertConfig, "text-classification"), (ViTConfig, "image-classification")):
        head = head_of(config(num_labels=labels, problem_type=problem), task)
        assert head is not None and (head.kind, len(head.names)) == (kind, labels)
    assert head_of(BertConfig(num_labels=labels, problem_type=problem), "feature-extraction") is None


def test_a_regression_of_several_outputs_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="regression with 3 outputs"):
        head_of(BertConfig(num_labels=3, problem_type="regression"), "text-classification")
