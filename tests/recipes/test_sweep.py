"""`sweep`: one option of one pass at several values, each of them checked as if the recipe said it."""

from __future__ import annotations

import pytest

from compressor.errors import RecipeError
from compressor.recipe import Recipe, json_schema, parse_recipe

TEXT = """\
version: 1
name: swept
passes:
  - width: {{sparsity: 0.3}}
  - int8-dynamic: {{}}
sweep:
  {}
"""


def read(toys, line: str) -> Recipe:
    return parse_recipe(TEXT.format(line), source="r", options=toys)


def test_each_value_takes_the_place_of_the_recipes(toys):
    recipe = read(toys, "width.sparsity: [0.1, 0.5]")
    assert [value for value, _ in recipe.variants] == [0.1, 0.5]
    for value, variant in recipe.variants:
        assert [entry.name for entry in variant.passes] == ["width", "int8-dynamic"] and variant.sweep is None
        assert variant.passes[0].options.sparsity == value and variant.passes[1] == recipe.passes[1]
    assert recipe.passes[0].options.sparsity == 0.3, "the artifact is what `passes` says"
    assert recipe.resolved()["sweep"] == {"width.sparsity": [0.1, 0.5]}
    plain = parse_recipe(TEXT.partition("sweep:")[0].format(), source="r", options=toys)
    assert plain.variants == [] and plain.resolved()["sweep"] is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("width.sparsty: [0.1]", "line 7: sweep.'width.sparsty': width has no option 'sparsty' (did you mean"),
        ("tome.r: [3]", "line 7: sweep.'tome.r': expected METHOD.KEY of a pass of this recipe: 'tome' is not among"),
        ("sparsity: [0.3]", "line 7: sweep.sparsity: expected METHOD.KEY of a pass of this recipe: 'sparsity' is not"),
        ("width.sparsity: [0.1, 7]", "line 7: sweep.'width.sparsity'[1].sparsity: must be less than 1"),
        ("width.sparsity: [0.1, 0.1]", "line 7: sweep.'width.sparsity': given twice: 0.1"),
        ("width.sparsity: []", "line 7: sweep.'width.sparsity': "),
        ("width.sparsity: 0.1", "line 7: sweep.'width.sparsity': expected a list, got 0.1"),
        ("{width.sparsity: [0.1], width.round_to: [8]}", "line 6: sweep: "),
    ],
)
def test_what_cannot_be_varied(toys, line, message):
    with pytest.raises(RecipeError) as error:
        read(toys, line)
    assert message in str(error.value)


def test_the_schema_has_it(toys):
    assert json_schema(toys)["properties"]["sweep"]["anyOf"][0]["maxProperties"] == 1
