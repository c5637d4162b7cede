"""Outputs without a winner: what passes for the same order, and for the same labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compressor.data.kinds import Inputs
from compressor.measure.runner import Array
from compressor.measure.torch_runner import TorchRunner
from compressor.model.config import config_for
from compressor.model.folder import open_model
from compressor.passes import methods
from compressor.passes.base import Target
from compressor.verification.cases import Case
from compressor.verification.outputs import ORDERINGS, check_cosines, check_spread, same_labels
from compressor.verification.reference import check_reference, write_reference
from compressor.verification.tolerances import TOLERANCES

RNG = np.random.default_rng(0)
WANTED = (9 + 0.2 * RNG.standard_normal((60, 1))).astype(np.float32)


def failing(precision: str = "int8-dynamic", **compared: tuple[Array, Array]) -> set[str]:
    return {check.name for check in check_spread(compared, precision, "parity") if not check.passed}


@pytest.mark.parametrize("precision", sorted(ORDERINGS))
def test_an_output_that_is_mostly_an_offset_is_judged_by_its_order(precision: str) -> None:
    """The case that cosine and the largest relative difference both call perfect."""
    near = WANTED + 0.01 * ORDERINGS[precision].error * RNG.standard_normal(WANTED.shape).astype(np.float32)
    assert not failing(precision, a=(near[:20], WANTED[:20]), b=(near[20:], WANTED[20:]))
    assert failing(precision, a=(RNG.permutation(WANTED), WANTED)) == {"parity.rank", "parity.relative_error"}


def test_an_offset_alone_is_an_error() -> None:
    assert failing(a=(WANTED + 1, WANTED)) == {"parity.relative_error"}
    assert failing(a=(np.full_like(WANTED, 9), WANTED)) == {"parity.rank", "parity.relative_error"}


def test_random_probes_that_are_all_answered_alike_do_not_count_beside_real_samples() -> None:
    flat = (np.full((30, 1), -11.0) + 0.001 * RNG.standard_normal((30, 1))).astype(np.float32)
    shuffled, samples = (RNG.permutation(flat), flat), (WANTED, WANTED)
    assert failing(a=shuffled) == {"parity.rank", "parity.relative_error"}
    assert not failing(a=shuffled, samples=samples)
    assert failing(a=(RNG.permutation(WANTED), WANTED), samples=samples) == {"parity.rank", "parity.relative_error"}


def test_labels_that_never_hold_are_held_to_their_spread() -> None:
    wanted = (-9 + 0.2 * RNG.standard_normal((40, 3))).astype(np.float32)
    assert failing(a=(wanted, wanted), samples=(RNG.permutation(wanted), wanted)) == {"parity.relative_error"}
    assert not failing(a=(wanted, wanted), samples=(wanted, wanted))


def test_labels_agree_unless_they_lie_within_the_tie() -> None:
    wanted = np.array([[2.0, -1.0, 0.001]])
    found = np.array([[1.0, 1.0, -0.001]])
    assert same_labels(found, wanted, 0.01).tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(same_labels(found * np.nan, wanted, 0.01)).all()


def test_one_token_of_many_may_come_out_otherwise_but_not_three_of_a_hundred() -> None:
    short, long = Case("short", 1, (7,)), Case("long", 1, (193,), columns=64)

    def failing(low: int) -> set[str]:
        values = {short: np.full(7, 0.999), long: np.full(193, 0.999), Case("wide", 1, (193,)): np.full(193, 0.999)}
        values[short][:low] = 0.6
        return {check.name for check in check_cosines(values, (0.99, 0.97), "", "parity") if not check.passed}

    assert failing(0) == failing(1) == set()
    assert failing(6) == {"parity.cosine_low"}
    assert failing(7) == {"parity.cosine_low"}
    few = {short: np.array([0.999] * 6 + [0.96])}
    assert [check.passed for check in check_cosines(few, (0.99, 0.97), "", "parity")] == [True, False]


@pytest.fixture(scope="module", params=["bert", "vit"])
def one_output(request: pytest.FixtureRequest, pico: Callable[..., Path]) -> Path:
    classes = {"bert": "BertForSequenceClassification", "vit": "ViTForImageClassification"}
    return pico(request.param, architecture=classes[request.param], num_labels=1)


def test_probes_of_one_output_judge_its_order(one_output: Path, tmp_path: Path) -> None:
    runner = TorchRunner(one_output)
    write_reference(runner, tmp_path / "reference.safetensors")
    for precision in TOLERANCES:
        checks = {check.name: check for check in check_reference(runner, tmp_path / "reference.safetensors", precision)}
        assert all(check.passed for check in checks.values())
        assert not any("cosine" in name or "argmax" in name for name in checks)
        assert ("parity.rank" in checks) == (precision in ORDERINGS)
        assert "parity.scores.max_abs" in checks or precision != "float32"


def test_a_head_that_was_negated_is_noticed(one_output: Path, tmp_path: Path) -> None:
    runner = TorchRunner(one_output)
    write_reference(runner, tmp_path / "reference.safetensors")
    head = runner._model.classifier
    head.weight.data.neg_()
    checks = check_reference(runner, tmp_path / "reference.safetensors", "int8-dynamic")
    assert {check.name for check in checks if not check.passed} == {"parity.rank", "parity.relative_error"}


def test_real_samples_are_one_of_the_probes(pico: Callable[..., Path], tmp_path: Path) -> None:
    runner = TorchRunner(pico("bert", architecture="BertForSequenceClassification", num_labels=1))
    ids = RNG.integers(0, 50, (9, 7))
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    write_reference(runner, tmp_path / "reference.safetensors", samples=samples)
    names = {check.name for check in check_reference(runner, tmp_path / "reference.safetensors") if check.passed}
    assert "parity.samples.max_abs" in names


class Moved(TorchRunner):
    """Gives the rows of a model's outputs one place further, as where one token near a tie gives way to another."""

    def forward(self, inputs: Inputs) -> Array:
        return np.roll(super().forward(inputs), 1, axis=1) * np.float32(self.factor)

    factor = 1.0


def test_tokens_that_are_handed_on_are_compared_by_their_mean_where_inputs_are_rounded(
    pico: Callable[..., Path], tmp_path: Path
) -> None:
    source, method = open_model(pico("llava_vision")), methods()["fastervlm"]
    model = source.with_blueprint(method(method.Options(tokens=6)).plan(source, Target()))
    (tmp_path / "config.json").write_text(json.dumps(config_for(model, model.blueprint)))
    shutil.copyfile(source.path / "model.safetensors", tmp_path / "model.safetensors")
    shutil.copyfile(source.path / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    reference, runner = tmp_path / "reference.safetensors", Moved(tmp_path)
    write_reference(TorchRunner(tmp_path), reference)
    assert all(check.passed for check in check_reference(runner, reference, "int8-dynamic"))
    assert not any(check.passed for check in check_reference(runner, reference, "float32") if "max_abs" in check.name)
    runner.factor = -1.0
    assert not any(check.passed for check in check_reference(runner, reference, "int8-dynamic"))
