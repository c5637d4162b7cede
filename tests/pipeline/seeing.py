"""A pico LLaVA model, and questions about images with answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from compressor.passes import methods
from compressor.recipe import Recipe, parse_recipe

Pico = Callable[..., Path]
PROMPT = "<image> {question} answer :"


def small_llava(pico: Pico) -> Path:
    """Return a LLaVA model of which two image blocks run, and one block of the language model."""
    from tests.pico import FAMILIES

    config = FAMILIES["llava"][2]
    return pico(
        "llava",
        text_config=config["text_config"] | {"num_hidden_layers": 1},
        vision_config=config["vision_config"] | {"num_hidden_layers": 3},
    )


def write_questions(folder: Path, images: int = 6) -> Path:
    """Write `questions.jsonl`, two questions of different lengths about each image, and the images; return the file."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for index in range(images):
        pixels = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        for kind, question, answer in (
            ("what", "what", "two letters"),
            ("where", "where is the clock", "on the bridge"),
        ):
            rows.append({"image": f"{index}.png", "kind": kind, "question": question, "answer": answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"


def recipe_for(folder: Path, **sections: Any) -> Recipe:
    """Return a recipe on the questions in `folder`, with top-level sections replaced."""
    content = {
        "version": 1,
        "name": "seeing",
        "model": {"prompt": PROMPT},
        "calibration": {"data": "questions.jsonl", "samples": 8},
        "evaluation": {"data": "questions.jsonl"},
        "passes": [{"fastervlm": {"tokens": 6}}, {"gptq": {"bits": 8, "part": "language"}}],
        # Pico-models are timed in microseconds, and random weights give answers that anything changes.
        "verify": {"gain.dominated": False, "gain.effect": False, "quality.entropy": False, "quality.top1": False,
                   "quality.cosine": False},
    } | sections  # fmt: skip
    options = {name: method.Options for name, method in methods().items()}
    return parse_recipe(yaml.safe_dump(content), source="seeing.yaml", options=options, folder=folder)
