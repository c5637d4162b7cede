"""Recipes: shipped ones, altered as text, as trees and as bytes, with overrides; those accepted are prepared."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import yaml

from compressor._shipped import shipped
from compressor.passes import method_options
from compressor.pipeline.prepare import prepare
from compressor.recipe import load_recipe
from tests.fuzz.mutations import alter_bytes, alter_entry, alter_text, alter_tree, as_text, is_plain, odd, write
from tests.fuzz.watch import READS
from tests.pico import make_pico

_PREPARED = 0.25
"""Share of the accepted recipes that are bound to a model, which costs ten times as much as reading them."""


class Recipes:
    """Makes recipes and reads them."""

    codes = (2, 3)
    allowed = (READS,)  # the user names the file, which may be a link

    def __init__(self, scratch: Path) -> None:
        """Read the shipped recipes and make a model for them."""
        self._texts = [recipe.path.read_text(encoding="utf-8") for recipe in shipped().values()]
        self._options = method_options()
        self._model = make_pico("llama", scratch / "recipes-model", num_hidden_layers=1)

    def attempt(self, rng: Random, folder: Path) -> str:
        """Read an altered recipe; raises what reading it raises."""
        path = folder / "recipe.yaml"
        write(path, rng.choice(self._texts))
        for _ in range(rng.choice((1, 1, 2, 4))):
            self._alter(rng, path)
        overrides = [f"{rng.choice(_KEYS)}={as_text(odd(rng))[:2000]}"] if rng.random() < 0.15 else []
        recipe = load_recipe(path, options=self._options, overrides=overrides)
        json.dumps(recipe.resolved())
        if rng.random() < _PREPARED:
            prepare(recipe, str(self._model))
        return "accepted"

    def _alter(self, rng: Random, path: Path) -> None:
        way = rng.random()
        if not is_plain(path) or way < 0.02:
            alter_entry(rng, path)
        elif way < 0.2:
            path.write_bytes(alter_bytes(rng, path.read_bytes()))
        elif way < 0.6:
            write(path, alter_text(rng, path.read_bytes().decode("utf-8", "surrogateescape")))
        else:
            tree = alter_tree(rng, _tree(rng, self._texts))
            write(path, as_text(tree) if rng.random() < 0.5 else _yaml(tree))


_KEYS = (
    "name",
    "model.id",
    "calibration.samples",
    "passes[0].rtn.bits",
    "verify.kl.max",
    "verify",
    "",
    "passes",
    "[0]",
)


def _tree(rng: Random, texts: list[str]) -> object:
    return yaml.load(rng.choice(texts), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _yaml(tree: object) -> str:
    try:
        return str(yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True))
    except (UnicodeError, yaml.YAMLError):
        return as_text(tree)
