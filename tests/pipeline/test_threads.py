"""Bytes do not depend on how many cores there are: torch computes with the number of threads that is stated."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.machine.progress import NullProgress
from compressor.machine.threads import fixed_threads
from compressor.pipeline import run
from compressor.pipeline.inputs import pass_fingerprint
from compressor.pipeline.prepare import prepare
from tests.pipeline.conftest import Maker

Pico = Callable[..., Path]


@pytest.fixture(params=[1, 3])
def outside(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that the environment gives to torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_threads_are_as_stated_inside_and_as_before_outside(outside: int) -> None:
    with pytest.raises(KeyError), fixed_threads(2):
        assert torch.get_num_threads() == 2
        raise KeyError
    assert torch.get_num_threads() == outside


def test_a_sum_has_the_same_bits_on_any_number_of_cores() -> None:
    numbers = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    found = set()
    for count in (1, 2, 3, 4):
        with fixed_threads(count), fixed_threads(1):
            found.add(float(numbers.sum()))
    assert len(found) == 1


@pytest.mark.parametrize("section", [{}, {"threads": 2}])
def test_a_run_computes_with_the_threads_of_its_recipe(
    outside: int,
    section: dict[str, Any],
    pico: Pico,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_recipe: Maker,
) -> None:
    seen = []

    def record(*given: Any) -> dict[str, Any]:
        seen.append((torch.get_num_threads(), pass_fingerprint(given[0], {}, 0, "cpu")))
        return {}

    module = importlib.import_module("compressor.pipeline.run")  # whose name in the package is the function `run`
    monkeypatch.setattr(module, "_make", record)
    monkeypatch.setattr(module, "_finish", lambda *given: {})
    recipe = make_recipe(calibration={"data": "train.txt", "samples": 4, "length": 16, **section})
    run(recipe, out=tmp_path / "out", progress=NullProgress(), model=str(pico("llama")))
    (threads, fingerprint) = seen[0]
    assert threads == recipe.threads == section.get("threads", 1)
    assert torch.get_num_threads() == outside
    with fixed_threads(4):  # a finished block of another number of threads is not reused
        assert pass_fingerprint(prepare(recipe, str(pico("llama"))), {}, 0, "cpu") != fingerprint


def test_a_recipe_without_calibration_has_one_thread(make_recipe: Maker) -> None:
    assert make_recipe(calibration=None, passes=[{"rtn": {}}]).threads == 1
