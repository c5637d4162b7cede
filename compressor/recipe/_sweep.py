"""`sweep`: one option of one pass, and the values at which a run measures the model beside the recipe's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from compressor.errors import Problem, did_you_mean
from compressor.recipe._problems import line_of, validate
from compressor.recipe._yaml import Document, KeyPath, key_name

if TYPE_CHECKING:
    from compressor.recipe import PassEntry


@dataclass(frozen=True)
class Sweep:
    """What is varied.

    Attributes:
        method: name of the pass.
        key: of its options.
        place: index of the pass in the recipe.
        options: by value, those of the pass.
    """

    method: str
    key: str
    place: int
    options: tuple[tuple[Any, BaseModel], ...]

    @property
    def name(self) -> str:
        """How the recipe names it."""
        return f"{self.method}.{self.key}"

    def to_json(self) -> dict[str, Any]:
        """Return it as the recipe states it."""
        return {self.name: [value for value, _ in self.options]}


def read_sweep(
    stated: Mapping[str, Sequence[Any]] | None,
    entries: Sequence[PassEntry],
    options: Mapping[str, type[BaseModel]],
    document: Document,
) -> tuple[Sweep | None, list[Problem]]:
    """Return the sweep of a recipe, or None and what is wrong with it.

    Args:
        stated: `METHOD.KEY` and its values, one pair; None where the recipe has none.
        entries: the passes of the recipe.
        options: options model of every method.
        document: the recipe.
    """
    if stated is None:
        return None, []
    ((name, values),) = stated.items()
    where: KeyPath = ("sweep", name)
    method, _, key = name.rpartition(".")
    message = _refused(method, key, entries, options)
    doubled = [value for index, value in enumerate(values) if value in values[:index]]
    message = message or (f"given twice: {doubled[0]}" if doubled else None)
    if message:
        return None, [Problem(key_name(where), message, line_of(where, document))]
    place, found, problems = next(e.place for e in entries if e.name == method), [], []
    given = document.value["passes"][place][method] or {}
    for index, value in enumerate(values):
        changed = {k: v for k, v in given.items() if k != "part"} | {key: value}
        model, wrong = validate(options[method], changed, (*where, index), document)
        problems += wrong
        if model is not None:
            found.append((value, model))
    return (None if problems else Sweep(method, key, place, tuple(found))), problems


def _refused(method: str, key: str, entries: Sequence[PassEntry], options: Mapping[str, type[BaseModel]]) -> str | None:
    """Say why an option cannot be varied; None where it can."""
    names = [entry.name for entry in entries]
    if names.count(method) != 1:
        how = "is not" if method not in names else "stands more than once"
        return (
            f"expected METHOD.KEY of a pass of this recipe: {method or key!r} {how} among {', '.join(names) or 'none'}"
        )
    known = options[method].model_fields
    if key not in known:
        return f"{method} has no option {key!r}{did_you_mean(key, known)}; allowed: {', '.join(known)}"
    return None
