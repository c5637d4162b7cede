"""Small pictures of what a model is given, for people to look at."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.images import SETTINGS
from compressor.errors import ModelError
from compressor.storage.json_files import read_json

_SIDE = 160
_QUALITY = 80


def picture(pixels: NDArray[Any], folder: Path) -> str:
    """Return an image as the model takes it as a JPEG in a `data:` URI, at most 160 pixels wide and high.

    Args:
        pixels: [channels, height, width], as the image processor has made them.
        folder: of the model; its processor's mean and standard deviation are undone.
    """
    from PIL import Image

    shown = np.round(255 * np.clip(_undone(pixels.astype(np.float64), folder), 0, 1)).astype(np.uint8)
    made = Image.fromarray(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0))
    made.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    made.save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _undone(pixels: NDArray[Any], folder: Path) -> NDArray[Any]:
    """Return pixels of 0 to 1; without the processor's mean and deviation, stretched to that range."""
    try:
        stated = read_json(folder / SETTINGS)
        mean, deviation = (np.asarray(stated[key], np.float64).reshape(-1, 1, 1) for key in ("image_mean", "image_std"))
        return np.asarray(pixels * deviation + mean)
    except (ModelError, KeyError, TypeError, ValueError):
        low, high = pixels.min(), pixels.max()
        return np.asarray((pixels - low) / max(high - low, 1e-6))
