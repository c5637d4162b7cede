"""Images on disk, read as the model's own processor prepares them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.preprocessors import library_calls, load_processor
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
SETTINGS = "preprocessor_config.json"
_CHANNELS = {1: "L", 3: "RGB"}
"""Channels of a model's images -> what Pillow calls such images."""


@dataclass(frozen=True)
class ImageReader:
    """Makes a model's inputs of images.

    Attributes:
        processor: the model's own image processor.
        shape: channels, height and width of what the model takes.
    """

    processor: Any
    shape: tuple[int, int, int]

    @property
    def mode(self) -> str:
        """What Pillow calls images of as many channels."""
        return _CHANNELS[self.shape[0]]

    def prepare(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Return images as the processor prepares them, float32 [images, channels, height, width].

        Raises:
            DataError: the processor cannot prepare them, or not as the model takes them.
        """
        with library_calls(f"{SETTINGS}: the image processor, for {self._wanted},"):
            made = self.processor(images=list(images), return_tensors="np")["pixel_values"]
            pixels = np.asarray(made, dtype=np.float32)
        if pixels.shape[1:] != self.shape:
            raise DataError(
                f"{SETTINGS}: the image processor gives {list(pixels.shape[1:])} (channels, height, width);"
                f" config.json describes a model for {self._wanted}",
                hint=_FITTING,
            )
        return pixels

    @property
    def _wanted(self) -> str:
        channels, height, width = self.shape
        return f"images of {channels} channel{'s' if channels > 1 else ''}, {height} x {width}"


_FITTING = (
    "Make it fit image_size and num_channels of config.json: one image_mean and one image_std for each channel, no"
    " do_convert_rgb for grey images, and a size of height and width, or do_center_crop. Positions are resampled to"
    " other sizes for square images of ViT, DeiT and DINOv2 alone."
)


def open_images(folder: Path, config: Any, *, trust_remote_code: bool = False) -> ImageReader:
    """Return what prepares images for the model in a folder.

    Args:
        folder: of the model.
        config: its transformers config.
        trust_remote_code: whether code of the image processor's own may run.

    Raises:
        DataError: there is no image processor, it cannot be read, or it does not fit the model.
    """
    from PIL import Image

    channels, size = int(config.num_channels), config.image_size
    if channels not in _CHANNELS:
        raise DataError(
            f"config.json: num_channels is {channels}; images are read with 1 channel (grey) or 3 (red, green, blue)"
        )
    height, width = size if isinstance(size, list | tuple) else (size, size)
    processor = load_processor(folder, trust_remote_code=trust_remote_code)
    reader = ImageReader(processor, (channels, int(height), int(width)))
    reader.prepare([Image.new(reader.mode, (int(width), int(height)))])
    return reader


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


def pixels(files: Sequence[Path], reader: ImageReader, key: str) -> NDArray[np.float32]:
    """Return images as a model takes them, float32 [images, channels, height, width].

    Raises:
        DataError: an image cannot be read or prepared.
    """
    # One after the other: photographs are large before the processor has made them small.
    return np.concatenate([reader.prepare([_image(file, key, reader.mode)]) for file in files])


def _image(file: Path, key: str, mode: str = "RGB") -> Image:
    from PIL import Image

    # What Pillow's readers raise for damaged files of one format or another.
    unreadable = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
    try:
        with open_regular(file) as stream, Image.open(stream, formats=_FORMATS) as image:
            _check_pixels(image)
            return image.convert(mode)
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
