"""Timing is interleaved, warmed, and states its clock; ratios come from rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import UsageError
from compressor.measure.benchmark import _interleave, compare, file_bytes
from compressor.measure.opening import open_runner
from compressor.measure.runner import Runner
from compressor.measure.timing import Phase, Series


def test_rounds_alternate_after_a_warm_up() -> None:
    calls: list[str] = []

    def slow(name: str) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            time.sleep(0.04)

        return call

    series = _interleave([slow("a"), slow("b")], rounds=4, seconds=60)
    assert "".join(calls) == "aabb" + "abbaabba"
    assert all(len(s.wall) == len(s.cpu) == 4 for s in series)
    assert all(0.03 < seconds < 1 for s in series for seconds in s.wall)


def test_short_calls_are_repeated() -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1
        time.sleep(0.001)

    _interleave([call], rounds=2, seconds=60)
    assert count > 10


def test_a_spent_budget_still_leaves_enough_rounds() -> None:
    (series,) = _interleave([lambda: time.sleep(0.03)], rounds=50, seconds=0.0)
    assert len(series.wall) == 3


def test_speedup_is_the_quotient_of_the_latencies_beside_it() -> None:
    ours, other = Series([1.0, 1.0, 10.0], [2.0, 2.0, 2.0]), Series([2.0, 3.0, 20.0], [2.0, 4.0, 8.0])
    phase = Phase("decode", 1, 8, 1, "cpu", ours, other)
    assert phase.ratios() == [2.0, 3.0, 2.0]
    assert phase.speedup() == 3.0 == other.median_ms("cpu") / ours.median_ms("cpu")
    low, high = phase.speedup_interval()
    assert 2.0 <= low < 3.0 <= high
    assert phase.to_json()["speedup_wall"] == 2.0
    assert phase.to_json()["ours"]["per_second"] == pytest.approx(1.0)


def test_a_model_is_as_fast_as_itself(artifact: Path) -> None:
    timing = compare(artifact, artifact, batch=[1, 2], length=16, rounds=9, seconds=3)
    assert [(p.name, p.batch) for p in timing.phases] == [
        ("prefill", 1),
        ("decode", 1),
        ("prefill", 2),
        ("decode", 2),
    ]
    assert all(0.4 < ratio < 2.5 for ratio in timing.speedup().values())
    assert 6 <= timing.rounds <= 9
    assert timing.ours.file_bytes == (artifact / "model.onnx").stat().st_size
    assert timing.ours.memory_bytes and 0 < timing.ours.memory_bytes < 1 << 28
    assert json.loads(json.dumps(timing.to_json()))["threads"] == 1


def test_both_models_come_first_once(pico: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    models, opened = [pico("llama"), pico("qwen2")], []

    def opening(folder: Path, threads: int = 1) -> Runner:
        opened.append(folder)
        return open_runner(folder, threads)

    monkeypatch.setattr("compressor.measure.benchmark.open_runner", opening)
    timing = compare(*models, length=8, rounds=7, seconds=0.01, memory=False)
    assert opened == [models[0], models[1], models[1], models[0]]
    assert timing.rounds == 6
    assert [len(phase.ours.cpu) for phase in timing.phases] == [len(phase.ratios()) for phase in timing.phases]


def test_encoders_and_images_have_a_forward(pico: Callable[..., Path]) -> None:
    for family in ("bert", "vit"):
        timing = compare(pico(family), rounds=2, seconds=1, memory=False)
        assert list(timing.latency_ms()) == ["forward"]
        assert timing.speedup() == {}


def test_lengths_stay_within_the_positions(pico: Callable[..., Path]) -> None:
    timing = compare(pico("llama"), length=100_000, rounds=1, seconds=1, memory=False)
    assert timing.phases[0].length == 255


def test_only_model_files_count(artifact: Path, pico: Callable[..., Path]) -> None:
    assert file_bytes(artifact) == (artifact / "model.onnx").stat().st_size
    assert file_bytes(pico("llama")) == (pico("llama") / "model.safetensors").stat().st_size


def test_wrong_arguments(pico: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="positive"):
        compare(pico("llama"), batch=0)
    with pytest.raises(UsageError, match="not comparable"):
        compare(pico("llama"), pico("vit"), memory=False)
