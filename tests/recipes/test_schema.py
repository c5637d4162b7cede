"""The JSON Schema for editors, and names that other parts must agree on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest

from compressor.architectures.tasks import TASKS
from compressor.cli._models import MetricName
from compressor.machine.processor import TARGETS
from compressor.recipe import BOUNDS, GATES, METRICS, ExportSection, json_schema
from compressor.recipe._sections import Metric


def properties(schema: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every key of a schema with its own schema."""
    if isinstance(schema, dict):
        for name, field in (schema.get("properties") or {}).items():
            yield f"{where}.{name}", field
        for key, inner in schema.items():
            yield from properties(inner, f"{where}.{key}")
    elif isinstance(schema, list):
        for position, inner in enumerate(schema):
            yield from properties(inner, f"{where}[{position}]")


def test_every_key_is_described(toys):
    schema = json_schema(toys, {"width": "Removes channels."})
    keys = list(properties(schema))
    assert len(keys) > 50
    assert [where for where, field in keys if not field.get("description")] == []
    assert schema["properties"]["passes"]["items"]["properties"]["width"]["description"] == "Removes channels."


def test_keys_of_shipped_methods_are_described():
    from compressor.passes import methods

    schema = json_schema({name: method.Options for name, method in methods().items()})
    assert [where for where, field in properties(schema) if not field.get("description")] == []


def test_top_level(toys):
    schema = json_schema(toys)
    assert list(schema["properties"]) == [
        "version",
        "name",
        "model",
        "calibration",
        "evaluation",
        "passes",
        "export",
        "verify",
        "sweep",
        "report",
    ]
    assert schema["required"] == ["version", "name", "passes"]
    assert schema["additionalProperties"] is False
    entries = schema["properties"]["passes"]["items"]
    assert (entries["minProperties"], entries["maxProperties"], entries["additionalProperties"]) == (1, 1, False)
    assert "null" not in str(entries["properties"]["width"]), "a method with required options cannot stand alone"
    assert {"type": "null"} in entries["properties"]["int8-dynamic"]["anyOf"]


def test_references_resolve(toys):
    schema = json_schema(toys)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(schema))
    assert found
    assert {name.removeprefix("#/$defs/") for name in found} <= set(schema["$defs"])


def test_metrics_are_those_of_the_table():
    assert get_args(Metric) == tuple(METRICS)
    assert tuple(MetricName) == tuple(METRICS)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_on_a_value_that_something_gives(name):
    value = BOUNDS[name]
    phases = {phase for task in TASKS.values() for phase in task.phases}
    assert value.low < value.high and value.text.endswith(".")
    assert value.metric is None or value.metric in METRICS
    assert (value.metric == name) == (value.metric is not None and value.change is None)
    assert value.phase is None or value.phase in phases
    assert (value.phase is not None) == name.removeprefix("speedup_").removeprefix("latency_").startswith(tuple(phases))


@pytest.mark.parametrize("name", GATES)
def test_a_gate_has_a_bound_that_it_can_meet(name):
    gate = GATES[name]
    assert gate.low < gate.high and gate.text.endswith(".")
    assert gate.metric is None or gate.metric in METRICS
    assert all(gate.low <= limit <= gate.high for limit in (gate.limits or {}).values())


def test_targets_are_those_that_the_machine_part_knows():
    assert get_args(ExportSection.model_fields["target"].annotation) == ("auto", *TARGETS)


def test_every_metric_and_every_phase_can_be_bounded():
    assert {value.metric for value in BOUNDS.values()} == {None, *METRICS}
    for task in TASKS.values():
        assert {f"speedup_{phase}" for phase in task.phases} | {f"latency_{phase}_ms" for phase in task.phases} < set(
            BOUNDS
        )


def test_differences_to_dense():
    assert BOUNDS["perplexity_increase"].value(12.0, 10.0) == pytest.approx(0.2)
    assert BOUNDS["accuracy_drop"].value(0.5, 0.75) == 0.25
