"""Predictions of `plan`: memory within a quarter of what a run then takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
        {},
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8},
        {"num_hidden_layers": 24},
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
