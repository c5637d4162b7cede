"""Where image tokens stand in the prompts of a language model, told to the passes that let some of them go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compressor.errors import RecipeError
from compressor.recipe import PassEntry, Recipe

SPAN = "image"
"""Option of passes on image tokens in the prompts of a language model: where these stand."""


def placed(recipe: Recipe, entries: Sequence[PassEntry], count: int, starts: Sequence[int]) -> tuple[PassEntry, ...]:
    """Return the passes of a language model, of which those on image tokens know where these stand.

    Args:
        recipe: of the whole model.
        entries: the passes.
        count: how many image tokens a prompt has.
        starts: places in the prompts of the data at which images begin; none where there is no data.

    Raises:
        RecipeError: a pass says otherwise, or the prompts differ in it.
    """
    return tuple(_placed(recipe, entry, count, starts) for entry in entries)


def _placed(recipe: Recipe, entry: PassEntry, count: int, starts: Sequence[int]) -> PassEntry:
    span = getattr(entry.options, SPAN, None)
    if span is None:
        return entry
    known = {"count": count, **({"start": starts[0]} if starts else {})}
    keys = span.model_fields_set if SPAN in entry.options.model_fields_set else ()
    stated = {key: value for key in keys if (value := getattr(span, key)) is not None}
    wrong = {key: value for key, value in stated.items() if value != known.get(key, value)}
    if wrong or len(starts) > 1:
        begin = f", from position {' or '.join(map(str, starts))} on" if starts else ""
        says = f"{SPAN} says {wrong}" if wrong else "the place must be one"
        message = f"the prompts have {count} image tokens{begin}; {says}"
        raise RecipeError(
            [recipe.problem(("passes", entry.place, entry.name), f"{message}; leave {SPAN} out")], source=recipe.source
        )
    update = {SPAN: span.model_copy(update=known)}
    return replace(entry, options=entry.options.model_copy(update=update))
