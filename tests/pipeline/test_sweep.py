"""The points of a sweep: one for each other value, kept when measured, so that a stopped run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import RecipeError
from compressor.model.cost import Cost
from compressor.pipeline.prepare import prepare
from compressor.pipeline.sweep import swept
from compressor.recipe import Recipe
from compressor.verification import Verdict
from compressor.verification.verdict import Check
from tests.pipeline.conftest import Maker

VALUES = {"passes": [{"evit": {"keep": 0.7, "layers": [2]}}], "verify": {}, "calibration": None, "evaluation": None}


@pytest.fixture
def recipe(make_recipe: Maker) -> Callable[..., Recipe]:
    return lambda **values: make_recipe(**{**VALUES, "sweep": values or {"evit.keep": [0.9, 0.7, 0.5]}})


class Points:
    """Costs each point by the tokens that it keeps, and lets a function judge it."""

    def __init__(self, model: str, judge: Callable[[int], Verdict]) -> None:
        self.model, self.judge = model, judge

    def basis(self, recipe: Recipe) -> str:
        return "the same model and data"

    def measure(self, recipe: Recipe, work: Path) -> tuple[Verdict, tuple[Cost, Cost]]:
        keep = prepare(recipe, self.model).blueprints[-1].reductions[0].keep
        assert keep is not None and work.is_dir() and recipe.sweep is None
        return self.judge(keep), (Cost(10, 10, 100), Cost(10, 10, keep))


def test_a_stopped_sweep_goes_on(recipe: Callable[..., Recipe], pico: Callable[..., Path], tmp_path: Path) -> None:
    asked, model = recipe(), str(pico("vit"))
    judged: list[int] = []

    def judge(keep: int) -> Verdict:
        if len(judged) == 1:
            raise KeyboardInterrupt
        judged.append(keep)
        return Verdict((Check("x", True),), compressed={"metrics": {"top1": 0.5}}, ratios={"speedup": {"forward": 2.0}})

    def run(judge: Callable[[int], Verdict]) -> Any:
        costs = Cost(10, 10, 100), Cost(10, 10, 13)
        return swept(asked, Verdict((Check("x", True),)), costs, tmp_path, Points(model, judge))

    with pytest.raises(KeyboardInterrupt):
        run(judge)
    others: list[int] = []

    def rest(keep: int) -> Verdict:
        others.append(keep)
        return Verdict((Check("x", False),))

    found = run(rest)
    assert (judged, others) == ([16], [10]), "0.9 and 0.5 of 16 patches, the class token and the fused one"
    values = [(point["value"], point.get("chosen", False), point["passed"]) for point in found["points"]]
    assert found["option"] == "evit.keep"
    assert values == [(0.7, True, True), (0.9, False, True), (0.5, False, False)]
    assert found["points"][1]["metrics"] == {"top1": 0.5} and found["points"][1]["flops"] == 0.16


def test_values_that_do_not_fit_the_model_are_found_before_work_begins(
    recipe: Callable[..., Recipe], pico: Callable[..., Path]
) -> None:
    with pytest.raises(RecipeError) as error:
        prepare(recipe(**{"evit.layers": [[1], [9]]}), str(pico("vit")))
    assert "sweep.'evit.layers': [9]: " in str(error.value) and "Allowed: 1 to 3" in str(error.value)
    assert len(error.value.problems) == 1
