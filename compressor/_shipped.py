"""The shipped recipes: YAML files grouped by folder, in a wheel inside the package, in a checkout beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import compressor
from compressor.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with the program.

    Attributes:
        name: its path below `recipes/` without suffix, such as `demo/llama-ffn-30`.
        path: its file.
    """

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """The first line of the header comment."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if text := line.lstrip("# ").strip():
                return text
        return ""


def shipped() -> dict[str, ShippedRecipe]:
    """Return the shipped recipes by name, in order."""
    found: dict[str, ShippedRecipe] = {}
    for base in compressor.__path__:
        root = Path(base) / "recipes"
        for path in sorted(root.rglob("*.yaml")):
            name = path.relative_to(root).with_suffix("").as_posix()
            found.setdefault(name, ShippedRecipe(name, path))
    return dict(sorted(found.items()))


def find(name: str) -> ShippedRecipe:
    """Return the shipped recipe of a name: `demo/llama-ffn-30`, `recipes/demo/llama-ffn-30.yaml` or `llama-ffn-30`.

    Raises:
        UsageError: there is none, or the short name stands for several.
    """
    recipes = shipped()
    wanted = name.removeprefix("./").removeprefix("recipes/").removesuffix(".yaml")
    if wanted in recipes:
        return recipes[wanted]
    short = [recipe for recipe in recipes.values() if recipe.name.rsplit("/", 1)[-1] == wanted]
    if len(short) == 1:
        return short[0]
    if short:
        raise UsageError(f"{name}: several recipes end so: {', '.join(recipe.name for recipe in short)}")
    near = did_you_mean(wanted, recipes) or did_you_mean(wanted, [key.rsplit("/", 1)[-1] for key in recipes])
    raise UsageError(
        f"{name}: no such file, and no shipped recipe of that name{near}",
        hint="`compressor recipes list` shows the shipped recipes.",
    )


def locate(name: str) -> Path:
    """Return the file of a recipe: the file of that path where there is one, else the shipped recipe of that name.

    Raises:
        UsageError: there is neither.
    """
    if not name:
        raise UsageError("no recipe given", hint="`compressor recipes list` shows the shipped recipes.")
    path = Path(name).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name too long for a file, or one with a NUL
        there = False
    if there and path.is_dir() and name.removesuffix(".yaml") not in shipped():
        raise UsageError(f"{name}: a folder; give the recipe's file")
    return path if there and not path.is_dir() else find(name).path
