"""What an artifact keeps of the tokens of evaluation images, for the report to draw: `kept_tokens` in report.json.

Shares over a number of images say where in an image tokens stay; they tell nothing of a single image. The images
themselves are in it only as far as the recipe asks for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.kinds import EvalData
from compressor.data.pictures import picture
from compressor.data.reading import model_batches
from compressor.errors import CompressorError
from compressor.measure.runner import Runner
from compressor.model.blueprint import in_order
from compressor.model.cost import image_grid
from compressor.model.folder import open_model
from compressor.verification.overlap import keeps_of
from compressor.verification.weights import open_weights

_IMAGES = 32
"""Over which shares are taken, at most."""


def kept_tokens(runner: Runner, data: EvalData, images: int, threads: int) -> dict[str, Any]:
    """Return report.json's `kept_tokens`; empty for an artifact that keeps all tokens, or whose graph does not say.

    Args:
        runner: the loaded artifact.
        data: evaluation data.
        images: how many of the images are shown.
        threads: of the session that is opened.
    """
    try:
        model = open_model(runner.folder)
        keeps = keeps_of(open_weights(runner.folder), runner, threads)
    except CompressorError:  # `tokens.overlap` says so
        return {}
    if keeps is None:
        return {}
    pixels = _first(data)
    leading, grid = model.family.leading_tokens, image_grid(model)
    reductions, last = in_order(model.blueprint.reductions), len(model.shapes.layers)
    shown = [i for i, reduction in enumerate(reductions) if reduction.select != "all"]
    masks = keeps({"pixel_values": pixels})[:, shown, leading : leading + grid[0] * grid[1]]
    return {
        "grid": list(grid),
        "blocks": [last if reductions[i].site == "output" else reductions[i].block + 1 for i in shown],
        "samples": len(pixels),
        "shares": [_bytes(np.round(255 * share)) for share in masks.mean(axis=0)],
        "images": [
            {"picture": picture(image, runner.folder), "kept": [_bytes(np.packbits(mask)) for mask in kept]}
            for image, kept in zip(pixels[:images], masks, strict=False)
        ],
    }


def _first(data: EvalData) -> NDArray[Any]:
    found: list[Any] = []
    for batch in model_batches(data):
        found.append(batch["pixel_values"])
        if sum(map(len, found)) >= _IMAGES:
            break
    return np.concatenate(found)[:_IMAGES]


def _bytes(values: NDArray[Any]) -> str:
    return values.astype(np.uint8).tobytes().hex()
