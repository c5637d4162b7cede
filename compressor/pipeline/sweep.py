"""The points of a recipe's `sweep`: the same run with another value, exported and measured as the artifact is.

Every point is kept in the work folder when it is measured, so a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.pipeline.inputs import dense_basis
from compressor.pipeline.prepare import Prepared, prepare
from compressor.pipeline.sealed import Made, seal_one
from compressor.recipe import Recipe
from compressor.storage.json_files import read_json
from compressor.verification import Job, Verdict

_FOLDER, _RESULT = "sweep", "point.json"

Judge = Callable[[Job], Verdict]
"""Verifies in a fresh process."""
Make = Callable[[Prepared, Path], Made]
"""Applies the passes of a recipe and exports, in a folder."""


def swept(recipe: Recipe, made: Made, verdict: Verdict, work: Path, make: Make, judge: Judge) -> dict[str, Any] | None:
    """Return report.json's `sweep`: the artifact's own point and those of all other values; None without a sweep.

    Args:
        recipe: of the run.
        made: of the recipe as it stands.
        verdict: on that.
        work: folder of the run.
        make: makes another one.
        judge: measures it.
    """
    sweep = recipe.sweep
    if sweep is None:
        return None
    own = getattr(recipe.passes[sweep.place].options, sweep.key)
    points = [{**_point(own, verdict, made), "chosen": True}]
    for index, (value, variant) in enumerate(recipe.others):
        points.append(_measured(value, variant, made, work / _FOLDER / str(index), make, judge))
    return {"option": sweep.name, "points": points}


def _measured(value: Any, recipe: Recipe, made: Made, work: Path, make: Make, judge: Judge) -> dict[str, Any]:
    """Return one point, of an earlier run where that was the same one."""
    bound = replace(prepare(recipe, made.prepared.model_id), source=made.prepared.source)
    basis, result = _basis(bound, made.facts["inputs"]), work / _RESULT
    if result.is_file() and (kept := read_json(result)).get("basis") == basis:
        return dict(kept["point"])
    work.mkdir(parents=True, exist_ok=True)
    other = make(bound, work)
    section = recipe.evaluation
    verdict = judge(
        Job(
            artifact=seal_one(other),
            dense=made.dense,
            data=bound.evaluation,
            metrics=tuple(section.metrics) if section is not None else (),
            passes=bound.method_names,
            flops=(other.costs[0].flops, other.costs[1].flops),
            memory=False,
        )
    )
    point = _point(value, verdict, other)
    shutil.rmtree(work)
    work.mkdir()
    half = result.with_suffix(".part")
    half.write_text(json.dumps({"basis": basis, "point": point}), encoding="utf-8")
    half.replace(result)  # whole or not at all
    return point


def _basis(bound: Prepared, hashes: Mapping[str, str]) -> str:
    """Name everything that a point depends on."""
    recipe = bound.recipe
    evaluation = recipe.evaluation.model_dump(mode="json") if recipe.evaluation is not None else None
    passes = [[entry.name, entry.to_json()] for entry in recipe.passes]
    return json.dumps([dense_basis(bound, hashes), passes, evaluation, dict(hashes)], sort_keys=True)


def _point(value: Any, verdict: Verdict, made: Made) -> dict[str, Any]:
    dense, ours = made.costs
    return {
        "value": value,
        "passed": verdict.passed,
        "flops": ours.flops / dense.flops,
        "latency_ms": verdict.compressed.get("latency_ms", {}),
        "speedup": verdict.ratios.get("speedup", {}),
        "metrics": verdict.compressed.get("metrics", {}),
    }
