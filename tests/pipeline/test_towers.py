"""A tower of a whole model, from recipe to artifact, and the artifact held against the whole model again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from compressor.machine.progress import NullProgress
from compressor.measure.torch_runner import TorchRunner
from compressor.pipeline import run, verify
from tests.pipeline.conftest import Maker

Pico = Callable[..., Path]
DATA = {"data": "images", "samples": 24}


def test_a_tower_is_compressed_and_held_against_the_whole(pico: Pico, make_recipe: Maker, tmp_path: Path) -> None:
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for index in range(24):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(images / f"{index}.png")
    recipe = make_recipe(
        model={"part": "vision"},
        calibration=DATA | {"data": str(images)},
        evaluation=DATA | {"data": str(images)},
        passes=[{"tome": {"r": 2}}, {"width": {"sparsity": 0.2, "round_to": 4}}],
        export={"format": "safetensors"},
        verify={"cosine": {"min": 0.2}, "quality.cosine": {"min": 0.2}, "size_ratio": {"max": 0.95}},
    )
    out, whole = tmp_path / "out", str(pico("clip"))
    report = run(recipe, model=whole, out=out, progress=NullProgress())
    assert report["verdict"] == "passed", [check for check in report["checks"] if not check["passed"]]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["CompressedCLIPVisionModelWithProjection"]
    assert config["projection_dim"] == 32 and "text_config" not in config
    pooled = TorchRunner(out).pooled({"pixel_values": np.zeros((2, 3, 32, 32), np.float32)})
    assert pooled is not None and pooled.shape == (2, 32)

    again = verify(out, progress=NullProgress(), against=whole, data=str(images), timing=False)
    passed = {check["name"]: check["passed"] for check in again["checks"]}
    assert passed["source.stock"] and passed["source.recorded"] and passed["parity.pooled.max_abs"]
    assert abs(again["compressed"]["metrics"]["cosine"] - report["compressed"]["metrics"]["cosine"]) < 1e-6
