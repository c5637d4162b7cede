"""The table of tasks: every task has all facts, the libraries agree with them, and nobody else states them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import transformers

from compressor.architectures import FAMILIES, JOINED, PARTS
from compressor.architectures.tasks import TASKS, Task, stated_task
from compressor.data.kinds import EvalData
from compressor.recipe import METRICS, ModelSection
from compressor.recipe._sections import PASS_PARTS

TABLE = "compressor/architectures/tasks.py"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_all_facts(task: Task) -> None:
    kinds = {data.kind for data in get_args(EvalData)}
    assert all(getattr(task, field.name) for field in fields(Task) if field.name not in ("endings", "length"))
    assert hasattr(transformers, task.auto_class)
    assert task.endings or task.auto_class == "AutoModel"
    assert set(task.metrics) <= kinds
    assert {name for names in task.metrics.values() for name in names} <= set(METRICS)
    # A classifier's kind of data is that of its head.
    assert task.classifies or max(task.metrics.values(), key=len) == next(iter(task.metrics.values()))
    assert stated_task([f"Some{ending}" for ending in task.endings]) == (task.name if task.endings else None)


def test_recipes_and_families_know_the_same_tasks() -> None:
    assert set(get_args(ModelSection.model_fields["task"].annotation)) == {"auto", *TASKS}
    of_parts = {joined.task for joined in JOINED.values()}
    assert {task for family in FAMILIES for task in family.tasks} | of_parts == set(TASKS)
    assert get_args(get_args(ModelSection.model_fields["part"].annotation)[0]) == PARTS
    assert ("auto", *PARTS) == PASS_PARTS


def test_optimum_loads_the_same_classes() -> None:
    from optimum.exporters.tasks import TasksManager

    for task in TASKS.values():
        assert TasksManager.get_model_class_for_task(task.name).__name__ == task.auto_class


def _words(path: Path) -> Iterator[str]:
    """Yield the names and strings of a file; docstrings and messages count as one string each."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.alias | ast.Name | ast.Attribute):
            yield getattr(node, "name", None) or getattr(node, "id", None) or getattr(node, "attr", "")


def test_the_table_is_the_only_one(repository: Path) -> None:
    stated = {word for task in TASKS.values() for word in (task.auto_class, task.ort_class, *task.endings)}
    files = [path for root in ("compressor", "exporters") for path in (repository / root).rglob("*.py")]
    makers = repository / "compressor" / "demo"  # builds the models that it trains
    read = [path for path in files if makers not in path.parents]
    repeated = {str(path.relative_to(repository)) for path in read if stated & set(_words(path))}
    assert repeated == {TABLE}
