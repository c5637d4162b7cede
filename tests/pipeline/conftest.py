"""A pico-model with text and a recipe, ready to be run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.passes import methods
from compressor.recipe import Recipe, parse_recipe

Maker = Callable[..., Recipe]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text for calibration and evaluation."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = [f"word{i}" for i in range(200)]
    for name in ("train.txt", "valid.txt"):
        (folder / name).write_text(" ".join(rng.choice(words) for _ in range(4000)))
    return folder


@pytest.fixture
def make_recipe(corpus: Path) -> Maker:
    """Return a function that makes a small recipe for decoders, with top-level sections replaced."""

    def make(**sections: Any) -> Recipe:
        content = {
            "version": 1,
            "name": "test",
            "calibration": {"data": "train.txt", "samples": 16, "length": 32},
            "evaluation": {"data": "valid.txt", "samples": 16, "length": 32},
            "passes": [{"width": {"sparsity": 0.3}}],
            # Random weights predict nothing: what a cut does to them says nothing about quality.
            "verify": {"top1": {"min": 0.01}, "perplexity_increase": {"max": 10.0}},
        } | sections
        options = {name: method.Options for name, method in methods().items()}
        return parse_recipe(yaml.safe_dump(content), source="test.yaml", options=options, folder=corpus)

    return make
