"""JSON Schema of recipes, for editors: every key with its type, limits, default and description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from compressor.recipe._sections import PASS_PARTS, Head


def json_schema(options: Mapping[str, type[BaseModel]], summaries: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a recipe.

    Args:
        options: options model of every method by name.
        summaries: what every method does, in one line.
    """
    models: list[type[BaseModel]] = list(dict.fromkeys([Head, *options.values()]))
    references, document = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/$defs/{model}"
    )
    definitions: dict[str, Any] = document["$defs"]
    head_name = references[(Head, "validation")]["$ref"].rsplit("/", 1)[1]
    head = definitions.pop(head_name)
    for model in options.values():
        name = references[(model, "validation")]["$ref"].rsplit("/", 1)[1]
        definitions[name].setdefault("properties", {})["part"] = {
            "description": "The tower that it is for, of a model of several; auto for all that it can be applied to.",
            "enum": list(PASS_PARTS),
            "default": PASS_PARTS[0],
        }
    methods = {
        name: _method(references[(model, "validation")], (summaries or {}).get(name), model)
        for name, model in options.items()
    }
    properties = head["properties"]
    for key in ("model", "export", "verify", "report"):  # left empty they are as absent
        properties[key]["anyOf"] = [{"$ref": properties[key].pop("$ref")}, {"type": "null"}]
    tail = {key: properties.pop(key) for key in ("export", "verify", "sweep", "report")}
    properties["passes"] = {
        "description": "Methods to apply, in order, each a mapping of its name to its options; [] for none.",
        "type": "array",
        "items": {
            "type": "object",
            "properties": methods,
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
    }
    properties.update(tail)
    head["required"] = [*head["required"], "passes"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **head, "title": "Recipe", "$defs": definitions}


def _method(reference: Mapping[str, str], summary: str | None, model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of one method's options; a method whose options all have defaults may stand without any."""
    described = {"description": summary or (model.__doc__ or "").strip().split("\n")[0]}
    if any(field.is_required() for field in model.model_fields.values()):
        return {**described, **reference}
    return {**described, "anyOf": [dict(reference), {"type": "null"}]}
