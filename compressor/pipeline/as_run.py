"""The recipe as it was run: `-m` and `--set` applied, every path as one sees it from the working folder.

`compressor run ARTIFACT/recipe.yaml`, started in the same folder, repeats the run. Manifest, report and card name no
place of this machine: of an absolute path they keep the last part.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any, Protocol

from compressor.recipe import Recipe

RECIPE, SOURCE = "recipe.yaml", "recipe.source.yaml"
"""In the artifact: the recipe as run, and the file that it came from, word for word."""
DATA = ("data", "prompts")
"""Keys of the sections calibration and evaluation that name files."""


class Bound(Protocol):
    """A recipe bound to a model.

    Attributes:
        recipe: the recipe.
        model_id: what the user calls the model.
    """

    @property
    def recipe(self) -> Recipe: ...  # noqa: D102
    @property
    def model_id(self) -> str: ...  # noqa: D102


def recipe_as_run(prepared: Bound) -> str:
    """Return the recipe as YAML: its own text, comments included, where no option and no place changes a value."""
    return prepared.recipe.text_with(_paths(prepared))


def public_text(prepared: Bound) -> str:
    """Return the recipe as run, without absolute paths of model and data."""
    return prepared.recipe.text_with({key: public(path) for key, path in _paths(prepared).items()})


def public_values(prepared: Bound) -> dict[str, Any]:
    """Return every value of the recipe that is in effect, without absolute paths of model and data."""
    values = prepared.recipe.resolved()
    for (section, key), path in _paths(prepared).items():
        values[section][key] = public(path)
    return values


def public(path: str) -> str:
    """Return the last part of an absolute path; anything else as it is."""
    return PurePath(path).name if path.startswith("~") or PurePath(path).is_absolute() else path


def _paths(prepared: Bound) -> dict[tuple[str, str], str]:
    """Return what names model and data, by recipe key, as one sees it from the working folder."""
    recipe, model = prepared.recipe, prepared.model_id
    found = {("model", "id"): model if Path(model).exists() else _seen(model, recipe)}
    for name, section in (("calibration", recipe.calibration), ("evaluation", recipe.evaluation)):
        if section is not None:
            found |= {(name, key): _seen(path, recipe) for key in DATA if (path := getattr(section, key)) is not None}
    return found


def _seen(name: str, recipe: Recipe) -> str:
    """Return a path that lies beside the recipe as one sees it from here; others, hub ids and `demo:…` as they are."""
    path = Path(name).expanduser()
    if recipe.folder is None or path.is_absolute() or not (recipe.folder / path).exists():
        return name
    folder, here = recipe.folder.resolve(), Path.cwd()
    if folder.is_relative_to(here):
        return str(folder.relative_to(here) / path)
    named = Path(recipe.source).parent  # as the user did
    return str((named if named.resolve() == folder else folder) / path)
