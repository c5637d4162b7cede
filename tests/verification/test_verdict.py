"""Bounds, floors, gains, exit codes and the fresh process."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compressor.data.reading import DataRequest
from compressor.errors import CompressorError, DataError, ModelError, UsageError, VerificationError
from compressor.exporters.ort import convert
from compressor.machine.fresh import Ended
from compressor.measure.scores import Quality
from compressor.measure.timing import Phase, Series
from compressor.measure.torch_runner import TorchRunner
from compressor.recipe import GATES
from compressor.verification import TOLERANCES, Check, Job, Verdict, _imitates, run_fresh, verify
from compressor.verification.__main__ import main
from compressor.verification.probes import write_probes
from compressor.verification.quality import (
    check_bounds,
    check_gain,
    check_gates_met,
    check_sanity,
    check_weight_only,
    derived,
    worse_than_dense,
)
from compressor.verification.speed import elsewhere, without_speed
from compressor.verification.verdict import ALWAYS, LOADED, bounded, whole


@pytest.mark.parametrize(
    ("value", "passed"),
    [
        (0.5, True),
        (0.0, True),
        (1.0, True),
        (1.1, False),
        (-0.1, False),
        (None, False),
        (math.nan, False),
        (math.inf, False),
    ],
)
def test_bounds_hold_only_for_finite_values_within(value: float | None, passed: bool) -> None:
    check = bounded("x", value, least=0.0, most=1.0, unit="bytes")
    assert check.passed is passed
    assert bool(check.reason) is not passed
    assert check.bound == {"min": 0.0, "max": 1.0}
    assert check.value is None or math.isfinite(float(check.value))


def test_the_recipe_replaces_the_floors() -> None:
    values = {"top1": 0.2, "perplexity_increase": 5.0}
    assert [c.passed for c in check_bounds(values, {})] == [False, False]
    assert [c.passed for c in check_bounds(values, {"top1": {"min": 0.1}, "perplexity_increase": {"max": 6}})] == [
        True,
        True,
    ]


def test_a_bound_that_nothing_measured_fails() -> None:
    (check,) = check_bounds({}, {"speedup": {"min": 1.0}})
    assert not check.passed
    assert "not measured" in check.reason


def test_derived_values() -> None:
    found = derived({"perplexity": 11.0, "accuracy": 0.6}, {"perplexity": 10.0, "accuracy": 0.8})
    assert found["perplexity_increase"] == pytest.approx(0.1)
    assert found["accuracy_drop"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("size", "speed", "increase", "failing"),
    [
        (0.5, (0.7, 0.9), 0.1, set()),
        (0.5, (0.7, 0.9), math.nan, set()),
        (1.0, (0.9, 1.01), 0.1, set()),
        (1.0, (1.1, 1.3), 0.1, set()),
        (1.0, (0.95, 0.98), 0.0, {"gain.effect"}),
        (1.0, (0.7, 0.9), 0.1, {"gain.dominated", "gain.effect"}),
        (1.2, (0.7, 0.9), math.nan, {"gain.dominated", "gain.effect"}),
        (1.2, (1.1, 1.3), 0.1, set()),
    ],
)
def test_gain(size: float, speed: tuple[float, float], increase: float, failing: set[str]) -> None:
    """Smaller is a gain; slower counts only where the whole interval of the speed-up lies below 1."""
    values = {"size_ratio": size, "perplexity_increase": increase}
    checks = check_gain(values, speed, ["cfsp"], {}, timed=True)
    assert {c.name for c in checks if not c.passed} == failing
    assert check_gain(values, speed, [], {}, timed=True) == []
    off = check_gain(values, speed, ["cfsp"], {"gain.dominated": {}, "gain.effect": {}}, timed=True)
    assert all(c.passed and c.reason == "not judged: the recipe says false" for c in off)


def test_an_artifact_that_is_slower_and_worse_and_not_smaller_is_explained() -> None:
    """What static 8-bit products in a slow scheme give (signed inputs: 0.4 of dense's speed)."""
    values = {"size_ratio": 1.0, "cosine": 0.94, "spearman_drop": 0.01}
    (dominated, effect) = check_gain(values, (0.38, 0.42), ["int8-static"], {}, timed=True)
    assert not dominated.passed and not effect.passed
    assert "slower (0.38 to 0.42 times its speed)" in dominated.reason and "worse than dense" in dominated.reason
    assert all(check.passed for check in check_gain(values, (2.5, 2.6), ["int8-static"], {}, timed=True))
    (effect,) = check_gain({**values, "size_ratio": 0.5}, None, ["int8-static"], {}, timed=True)
    assert effect.name == "gain.effect" and effect.passed, "a speed that is not the artifact's own is not judged"
    (effect,) = check_gain(values, None, ["int8-static"], {}, timed=True)
    assert not effect.passed


def phase(ratios: list[float]) -> Phase:
    ours, other = Series([1.0] * len(ratios), [1.0] * len(ratios)), Series(ratios, ratios)
    return Phase("decode", 1, 16, 1, "cpu", ours, other)


def test_noise_of_the_clock_is_judged_with_its_own_interval() -> None:
    low, high = phase([0.9, 1.06] * 8).speedup_interval()
    assert low < 0.98 < 1.0 < high, "noise of 8 % says nothing of 2 %"
    low, high = phase([0.975, 0.985] * 8).speedup_interval()
    assert 0.97 < low < high < 1.0
    assert phase([0.9, 1.2, 1.1]).speedup_interval() == phase([0.9, 1.2, 1.1]).speedup_interval()


BAD: dict[str, float] = {
    "perplexity_increase": 5.0,
    "kl": 1.0,
    "top1": 0.1,
    "cosine": 0.1,
    "rank": 0.1,
    "relative_error": 5.0,
    "size_ratio": 1.0,
}


def judged(bounds: dict[str, dict[str, float]]) -> list[Check]:
    """Everything that judges, of an artifact that meets nothing."""
    poor = quality(
        finite=False, varies=False, entropy=1.0, ours={"accuracy": 0.1, "f1": 0.1}, dense={"accuracy": 0.9, "f1": 0.9}
    )
    checks = check_sanity(poor, bounds) + check_bounds(BAD, bounds)
    for alone in (True, False):
        checks += check_weight_only(BAD, bounds, alone=alone, step=0.5)
    return checks + check_gain(BAD, (0.5, 0.6), ["rtn"], bounds, timed=True)


def test_every_gate_fails_under_its_name_and_has_a_key_of_that_name() -> None:
    assert {check.name for check in judged({}) if not check.passed} == set(GATES)
    off = judged(dict.fromkeys(GATES, {}))
    assert {check.name for check in off} == set(GATES)
    assert all(check.passed and "not judged" in check.reason for check in off)


@pytest.mark.parametrize("name", [name for name, gate in GATES.items() if gate.limits is not None])
def test_a_bound_of_ones_own_takes_the_place_of_a_gates(name: str) -> None:
    side = "min" if name.rpartition(".")[2] in ("accuracy", "f1", "top1", "cosine", "rank") else "max"
    for limit, passed in ((0.05, side == "min"), (10.0, side == "max")):
        (check,) = (check for check in judged({name: {side: limit}}) if check.name == name)
        assert check.passed is passed and check.bound == {side: limit}


def test_a_bound_on_a_gate_that_is_not_judged_fails() -> None:
    bounds = {"quality.weight_only.kl": {"max": 0.1}, "gain.dominated": {}}
    (check,) = check_gates_met([], bounds)
    assert check.name == "quality.weight_only.kl" and "does not apply" in check.reason
    assert check_gates_met([Check(check.name, True)], bounds) == []


def test_speed_is_judged_where_the_artifact_is_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.machine.processor.cpu", lambda: {"features": {"avx2": True, "avx_vnni": True}})
    assert elsewhere({"target": "x86-vnni"}) is elsewhere({}) is elsewhere({"target": ["x"]}) is None
    why = elsewhere({"target": "arm64"})
    assert why is not None and "for arm64" in why and "this machine is x86-vnni" in why
    bounds: dict[str, dict[str, float]] = {
        "speedup": {"min": 9.0},
        "latency_decode_ms": {"max": 0.1},
        "top1": {"min": 0.1},
    }
    left, checks = without_speed(bounds, why, gains=True)
    assert left == {"top1": {"min": 0.1}}
    assert [c.name for c in checks] == ["bounds.speedup", "bounds.latency_decode_ms", "gain.dominated", "gain.effect"]
    assert all(check.passed and check.reason == f"not judged: {why}" for check in checks)


@pytest.mark.parametrize("loaded", LOADED)
def test_graphs_and_safetensors_each_have_their_check_of_loading(loaded: str) -> None:
    checks = tuple(Check(name, True) for name in [*ALWAYS, "parity.argmax", loaded])
    assert whole(Verdict(checks)).passed
    with pytest.raises(VerificationError, match="graph.session or model.loads"):
        whole(Verdict(checks[:-1]))


def test_pytorch_speed_is_judged_unless_it_imitates_integer_products(pico: Callable[..., Path]) -> None:
    runner = TorchRunner(pico("bert"))
    judged = {p for p in TOLERANCES if not _imitates(runner, p)}
    assert judged == set(TOLERANCES) - {"int8-dynamic", "int8-static"}
    assert not any(_imitates(None, p) for p in TOLERANCES)


def test_another_model_that_is_better_at_its_task_is_not_worse() -> None:
    differs = {"kl": 0.2, "top1": 0.8}
    assert worse_than_dense({**differs, "perplexity_increase": 0.0})
    assert not worse_than_dense({**differs, "perplexity_increase": -0.15})
    assert worse_than_dense({**differs, "perplexity_increase": -0.15, "accuracy_drop": 0.0})
    assert worse_than_dense({"cosine": 0.99, "spearman_drop": math.nan})


def quality(**changes: object) -> Quality:
    base = Quality({"accuracy": 0.8}, {"accuracy": 0.9}, True, True, 0.5, 100)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, set()),
        ({"finite": False}, {"quality.finite"}),
        ({"varies": False}, {"quality.varies"}),
        ({"entropy": 1.0}, {"quality.entropy"}),
        ({"entropy": math.nan}, {"quality.entropy"}),
        ({"ours": {"accuracy": 0.44}}, {"quality.accuracy"}),
        ({"ours": {"accuracy": math.nan}}, {"quality.accuracy"}),
        ({"ours": {"accuracy": 0.0}, "dense": {"accuracy": 0.05}}, set()),
        ({"ours": {"f1": 0.4}, "dense": {"f1": 0.9}}, {"quality.f1"}),
    ],
)
def test_sanity(changes: dict[str, object], failing: set[str]) -> None:
    assert {c.name for c in check_sanity(quality(**changes), {}) if not c.passed} == failing


def test_exit_codes() -> None:
    good, bad, broken = Check("a", True), Check("b", False), Check("c", False, damaged=True)
    assert [Verdict(c).exit_code for c in ((good,), (good, bad), (bad, broken), ())] == [0, 4, 3, 4]
    assert isinstance(Verdict((bad,)).error(), VerificationError)
    assert isinstance(Verdict((broken,)).error(), ModelError)
    assert Verdict((good,)).error() is None


def test_verdicts_survive_json() -> None:
    verdict = Verdict((Check("a", False, None, {"max": 1.0}, "ms", "why", True),), {"metrics": {"kl": math.nan}})
    data = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert data["dense"] == {"metrics": {"kl": None}}
    assert Verdict.from_json(data).checks == verdict.checks


def test_jobs_survive_json(text: DataRequest) -> None:
    job = Job(Path("a"), Path("b"), {"kl": {"max": 1.0}}, text, ("kl",), ("cfsp",), (10, 5), batches=(2,))
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


@pytest.mark.parametrize(
    "bounds",
    [{"perplexity_increas": {"max": 1.0}}, {"kl": {}}, {"kl": {"most": 1.0}}, {"kl": {"max": math.nan}}],
)
def test_impossible_bounds_are_refused(bounds: dict[str, dict[str, float]], artifact: Path) -> None:
    with pytest.raises(UsageError, match="verify"):
        verify(Job(artifact, bounds=bounds))


def test_missing_things_raise(artifact: Path, tmp_path: Path, text: DataRequest) -> None:
    with pytest.raises(ModelError):
        verify(Job(tmp_path / "nothing"))
    with pytest.raises(ModelError):
        verify(Job(artifact, dense=tmp_path))
    with pytest.raises(DataError):
        verify(Job(artifact, data=replace(text, data="nowhere.txt"), timing=False))
    with pytest.raises(UsageError):
        verify(Job(artifact, data=text, metrics=("accuracy",), timing=False))


def test_a_plain_export_is_verified_in_full(artifact: Path, text: DataRequest) -> None:
    """The fresh process: all kinds of checks, figures of both sides, ratios and speed-ups, in report.json's keys."""
    bounds = {"perplexity_increase": {"max": 0.01}, "size_ratio": {"max": 1.0}, "speedup": {"min": 0.3}}
    job = Job(artifact, artifact, bounds, text, flops=(100, 50), rounds=5, seconds=0.5, batches=(1,))
    verdict = run_fresh(job)
    assert verdict.failures == []
    assert {"bounds.speedup", "bounds.size_ratio", "parity.greedy", "determinism.bits"} <= {
        c.name for c in verdict.checks
    }
    figures = {"bytes", "metrics", "samples", "intervals", "latency_ms", "parameters", "flops"}
    assert set(verdict.dense) == set(verdict.compressed) == figures
    assert verdict.compressed["samples"] == 8 and verdict.compressed["intervals"]["perplexity_increase"]
    assert set(verdict.ratios) == {"bytes", "parameters", "flops", "speedup", "speedup_interval"}
    assert verdict.ratios["flops"] == 0.5
    assert set(verdict.compressed["latency_ms"]) == {"prefill", "decode"}
    assert verdict.timing["footprint"]["ours"]["memory_bytes"] > 0


def test_missed_bounds_fail(artifact: Path, text: DataRequest) -> None:
    job = Job(artifact, artifact, {"size_ratio": {"max": 0.5}, "kl": {"max": 1e-6}}, text, timing=False)
    verdict = verify(job)
    assert [c.name for c in verdict.failures] == ["bounds.size_ratio"]
    assert "size ratio is 1; 0.5 is allowed." in verdict.failures[0].reason


def test_the_process_answers_errors(tmp_path: Path) -> None:
    request, answer = tmp_path / "job.json", tmp_path / "out.json"
    for content, code in (
        ("{", ModelError.exit_code),
        ('{"artifact": "x", "colour": 1}', UsageError.exit_code),
        ("{}", UsageError.exit_code),
        (json.dumps({"artifact": str(tmp_path / "none")}), ModelError.exit_code),
    ):
        request.write_text(content)
        assert main([str(request), str(answer)]) == code
        assert json.loads(answer.read_text())["error"]["message"]


def test_errors_cross_the_process_border(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such artifact"):
        run_fresh(Job(tmp_path / "nothing"))


def test_a_process_without_an_answer_is_an_error(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.machine.asking.run_preloaded", lambda *a, **k: Ended(1, "", ""))
    with pytest.raises(CompressorError, match="no verdict"):
        run_fresh(Job(artifact))


def test_a_hostile_working_folder_is_not_executed(
    artifact: Path, pico: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "hostile"))
    for name in ("numpy.py", "json.py", "compressor/__init__.py", "compressor/verification/__main__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.chdir(folder)
    verdict = run_fresh(Job(Path(), dense=artifact, rounds=3, seconds=0.2))
    assert "parity.prefill.max_abs" in {check.name for check in verdict.checks}
    write_probes(pico("llama"), tmp_path / "probes.safetensors")
    convert(artifact / "model.onnx", tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_other_tasks_pass(family: str, pico: Callable[..., Path], tmp_path: Path) -> None:
    from tests.verification.conftest import export

    folder = export(pico(family), tmp_path / family)
    verdict = verify(Job(folder, dense=folder, rounds=3, seconds=0.5, batches=(1, 2), memory=False))
    assert verdict.failures == []
    assert set(verdict.compressed["latency_ms"]) == {"forward"}
    assert any(c.name == "parity.batch.max_abs" for c in verdict.checks)


def test_portable_graphs_are_checked_with_left_padding(pico: Callable[..., Path], tmp_path: Path) -> None:
    from tests.verification.conftest import export

    folder = export(pico("llama"), tmp_path / "portable", graph="portable")
    verdict = verify(Job(folder, timing=False))
    assert verdict.failures == []
    assert "parity.left_padding.max_abs" in {c.name for c in verdict.checks}


@pytest.mark.parametrize(
    "answer",
    [
        "{}",
        "[]",
        "garbage",
        '{"checks": [1]}',
        json.dumps({"checks": [{"name": "files.seal", "passed": True}]}),
        json.dumps({"checks": [{"name": name, "passed": True} for name in ALWAYS]}),
        json.dumps({"checks": [{"name": name, "passed": True} for name in [*ALWAYS[1:], "parity.argmax"]]}),
    ],
)
def test_a_verdict_without_the_checks_that_always_are_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def forged(module: str, request: str, place: str, **options: object) -> Ended:
        Path(place).write_text(answer)
        return Ended(0, "", "")

    monkeypatch.setattr("compressor.machine.asking.run_preloaded", forged)
    with pytest.raises(VerificationError, match="not to be trusted|no verdict"):
        run_fresh(Job(tmp_path))
