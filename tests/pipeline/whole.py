"""Pico-models of two towers, images whose labels are names, and prompts for these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from compressor.passes import methods
from compressor.recipe import Recipe, parse_recipe

Pico = Callable[..., Path]
LABELS = ("red", "green", "blue")
_LAYERS = {"num_hidden_layers": 1}


def two_towers(pico: Pico, family: str) -> Path:
    """Return a model whose towers have one layer each."""
    from tests.pico import FAMILIES

    config = FAMILIES[family][2]
    return pico(family, text_config=config["text_config"] | _LAYERS, vision_config=config["vision_config"] | _LAYERS)


def write_data(folder: Path, images: int = 12) -> Path:
    """Write an image folder `pics` and `prompts.csv`, two prompts for each label."""
    (folder / "pics").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["file,label"]
    for index in range(images):
        pixels = rng.integers(0, 120, (32, 32, 3)).astype(np.uint8)
        pixels[..., index % 3] += 100
        Image.fromarray(pixels).save(folder / "pics" / f"{index}.png")
        rows.append(f"{index}.png,{LABELS[index % 3]}")
    (folder / "pics" / "labels.csv").write_text("\n".join(rows) + "\n")
    prompts = [f"{label},{text} {label}" for label in LABELS for text in ("a photo of", "something")]
    (folder / "prompts.csv").write_text("\n".join(["label,prompt", *prompts]) + "\n")
    return folder


def recipe_for(folder: Path, **sections: Any) -> Recipe:
    """Return a recipe on the data in `folder`, with top-level sections replaced."""
    content = {
        "version": 1,
        "name": "towers",
        "evaluation": {"data": "pics", "prompts": "prompts.csv"},
        "passes": [{"int8-dynamic": {"part": "vision"}}],
        # Pico-models are timed in microseconds, and random weights tell nothing apart.
        "verify": {"gain.dominated": False, "gain.effect": False, "quality.entropy": False},
    } | sections
    options = {name: method.Options for name, method in methods().items()}
    return parse_recipe(yaml.safe_dump(content), source="towers.yaml", options=options, folder=folder)
