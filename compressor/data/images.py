"""Images on disk, read as the model's own processor prepares them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_SHOWN = 3


def load_processor(folder: Path) -> Any:
    """Load the image processor of a model folder.

    Raises:
        DataError: there is none, or transformers cannot read it.
    """
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        raise DataError(f"model.id: {folder.name} has no preprocessor_config.json, so images cannot be prepared")
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise DataError(f"model.id: the image processor of {folder.name} cannot be read: {error}") from error


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
    images = [_image(file, key) for file in files]
    return np.asarray(processor(images=images, return_tensors="np")["pixel_values"], dtype=np.float32)


def _image(file: Path, key: str) -> Image:
    from PIL import Image

    # What Pillow's readers raise for damaged files of one format or another.
    unreadable = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except unreadable as error:
        # Pillow repeats the whole path where it knows no format.
        reason = str(error).replace(str(file), file.name)
        raise DataError(f"{key}: {file.name} is not a readable image: {reason}") from error
