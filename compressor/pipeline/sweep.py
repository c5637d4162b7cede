"""The points of a recipe's `sweep`: the same run with another value, exported and measured as the artifact is.

Every point is kept in the work folder when it is measured, so a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from compressor.model.cost import Cost
from compressor.recipe import Recipe
from compressor.storage.json_files import read_json
from compressor.verification import Verdict

_FOLDER, _RESULT = "sweep", "point.json"


class Run(Protocol):
    """How the point of a value is made and measured; of a model, or of all parts of one."""

    def basis(self, recipe: Recipe) -> str:
        """Name everything beside passes and evaluation data that the point of a recipe depends on."""

    def measure(self, recipe: Recipe, work: Path) -> tuple[Verdict, tuple[Cost, Cost]]:
        """Carry a recipe out in a folder; return the verdict, and the costs of the dense model and of ours."""


def swept(recipe: Recipe, verdict: Verdict, costs: tuple[Cost, Cost], work: Path, run: Run) -> dict[str, Any] | None:
    """Return report.json's `sweep`: the artifact's own point and those of all other values; None without a sweep.

    Args:
        recipe: of the run.
        verdict: on its artifact.
        costs: theoretical costs of the dense model and of the artifact.
        work: folder of the run.
        run: makes and measures the other points.
    """
    sweep = recipe.sweep
    if sweep is None:
        return None
    own = getattr(recipe.passes[sweep.place].options, sweep.key)
    points = [{**_point(own, verdict, costs), "chosen": True}]
    for index, (value, variant) in enumerate(recipe.others):
        points.append(_measured(value, variant, work / _FOLDER / str(index), run))
    return {"option": sweep.name, "points": points}


def _measured(value: Any, recipe: Recipe, work: Path, run: Run) -> dict[str, Any]:
    """Return one point, of an earlier run where that was the same one."""
    basis, result = _basis(recipe, run), work / _RESULT
    if result.is_file() and (kept := read_json(result)).get("basis") == basis:
        return dict(kept["point"])
    work.mkdir(parents=True, exist_ok=True)
    point = _point(value, *run.measure(recipe, work))
    shutil.rmtree(work)
    work.mkdir()
    half = result.with_suffix(".part")
    half.write_text(json.dumps({"basis": basis, "point": point}), encoding="utf-8")
    half.replace(result)  # whole or not at all
    return point


def _basis(recipe: Recipe, run: Run) -> str:
    """Name everything that a point depends on."""
    evaluation = recipe.evaluation.model_dump(mode="json") if recipe.evaluation is not None else None
    passes = [[entry.name, entry.to_json()] for entry in recipe.passes]
    return json.dumps([run.basis(recipe), passes, evaluation], sort_keys=True)


def _point(value: Any, verdict: Verdict, costs: tuple[Cost, Cost]) -> dict[str, Any]:
    dense, ours = costs
    return {
        "value": value,
        "passed": verdict.passed,
        "flops": ours.flops / dense.flops,
        "latency_ms": verdict.compressed.get("latency_ms", {}),
        "speedup": verdict.ratios.get("speedup", {}),
        "metrics": verdict.compressed.get("metrics", {}),
    }
