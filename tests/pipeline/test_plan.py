"""Predictions of `plan`: memory within a quarter of what a run then takes; seconds follow the data that is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.passes.base import Needs
from compressor.pipeline.memory import estimate_seconds, samples_at_half
from tests.pipeline.conftest import Maker

Pico = Callable[..., Path]

MEASURE = """
import json, sys
from pathlib import Path
from compressor.passes import methods
from compressor.pipeline import plan, run
from compressor.machine.progress import NullProgress
from compressor.recipe import load_recipe
recipe = load_recipe(Path(sys.argv[1]), options={k: v.Options for k, v in methods().items()})
predicted = plan(recipe, model=sys.argv[2])["peak_memory_bytes"]
report = run(recipe, model=sys.argv[2], out=Path(sys.argv[3]), progress=NullProgress())
print(json.dumps([predicted, report["peak_memory_bytes"]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({}, marks=pytest.mark.exhaustive),
        pytest.param(
            {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8}, marks=pytest.mark.exhaustive
        ),
        pytest.param({"num_hidden_layers": 24}, marks=pytest.mark.exhaustive),
        {"hidden_size": 384, "vocab_size": 40000},
    ],
)
def test_peak_memory_is_predicted_within_a_quarter(
    pico: Pico, make_recipe: Maker, corpus: Path, tmp_path: Path, shape: dict[str, int]
) -> None:
    recipe = make_recipe(
        calibration={"data": str(corpus / "train.txt"), "samples": 64, "length": 64},
        evaluation={"data": str(corpus / "valid.txt"), "samples": 4, "length": 32},
    )
    (tmp_path / "recipe.yaml").write_text(recipe.text)
    model = pico("llama", **shape)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "recipe.yaml"), str(model), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert 0.75 <= predicted / measured <= 1.25


def prepared(samples: int, *needs: Needs) -> Any:
    """Return what the estimates read of a recipe whose samples have 256 tokens, for a model of 688 FFN channels."""
    shapes = SimpleNamespace(layers=[SimpleNamespace(intermediate_size=688)])
    return SimpleNamespace(
        passes=[SimpleNamespace(needs=item) for item in needs],
        blueprints=[SimpleNamespace(shapes=shapes) for _ in range(len(needs) + 1)],
        calibration=SimpleNamespace(samples=samples, length=256),
        source=SimpleNamespace(task="text-generation", family=SimpleNamespace(inputs="tokens")),
        recipe=SimpleNamespace(threads=1),
    )


def test_seconds_are_those_of_the_data_that_passes_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.pipeline.memory._flops_per_second", lambda threads: 2.0)  # one is used
    thins, blind = Needs("must", dense=True, walks=3, tokens_per_channel=24), Needs("none")
    whole = Needs("must", dense=True)
    # 688 channels need 16512 tokens: one in seven of the 131072 that there are.
    assert estimate_seconds(prepared(512, thins, blind), 10) == pytest.approx(5 * 512 / 7 * 10)
    assert estimate_seconds(prepared(512, thins, whole), 10) == pytest.approx((5 * 512 / 7 + 3 * 512) * 10)
    assert estimate_seconds(prepared(512, blind), 10) == 0


def test_half_the_time_is_had_with_the_samples_that_plan_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.pipeline.memory._flops_per_second", lambda threads: 2.0)
    whole = Needs("must", dense=True)
    assert samples_at_half(prepared(64, whole), 10) == {"samples": 33, "seconds": 990}
    # 512 samples of which one in seven is used cost as much as 73, so half of these is half the time.
    found = samples_at_half(prepared(512, Needs("must", walks=3, tokens_per_channel=24)), 10)
    assert found is not None and found["samples"] == 38
    assert samples_at_half(prepared(64, Needs("none")), 10) is None
