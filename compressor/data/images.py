"""Images on disk, read as the model's own processor prepares them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.preprocessors import library_calls
from compressor.errors import DataError
from compressor.storage.regular import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

_SHOWN = 3
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is read; Pillow would hand other formats, such as EPS, to programs outside."""
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes of at most eight bits per channel; it would clip what has more to white."""
_MOST_PIXELS = 64 << 20


def check_images(files: Sequence[Path], key: str) -> None:
    """Decode every image once, so that a damaged one is found before work begins.

    Raises:
        DataError: images cannot be read; the first few are named.
    """
    damaged = []
    for file in files:
        try:
            _image(file, key)
        except DataError as error:
            damaged.append(error.message)
    if damaged:
        more = f"; {len(damaged)} of {len(files)} images are damaged" if len(damaged) > 1 else ""
        raise DataError(
            "; ".join(damaged[:_SHOWN]) + more, hint="Replace these files, or take their rows out of labels.csv."
        )


def pixels(files: Sequence[Path], processor: Any, key: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return images as the processor prepares them, float32 [images, channels, height, width].

    Raises:
        DataError: an image cannot be read.
    """
    found = []
    for file in files:  # one after the other: photographs are large before the processor has made them small
        image = _image(file, key)
        with library_calls(f"{key}: {file.name}: the image processor and this image"):
            found.append(np.asarray(processor(images=[image], return_tensors="np")["pixel_values"], dtype=np.float32))
    return np.concatenate(found)


def _image(file: Path, key: str) -> Image:
    from PIL import Image

    # What Pillow's readers raise for damaged files of one format or another.
    unreadable = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
    try:
        with open_regular(file) as stream, Image.open(stream, formats=_FORMATS) as image:
            _check_pixels(image)
            return image.convert("RGB")
    except unreadable as error:
        # Pillow repeats the whole path where it knows no format.
        reason = str(error).replace(str(file), file.name)
        raise DataError(f"{key}: {file.name} is not a readable image: {reason}") from error


def _check_pixels(image: Image) -> None:
    """Raise ValueError for an image that eight bits per channel do not hold, or that takes too much memory."""
    if image.mode not in _MODES:
        raise ValueError(f"its pixels are of mode {image.mode}; allowed: eight bits per channel")
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels; allowed: {_MOST_PIXELS >> 20} million")
