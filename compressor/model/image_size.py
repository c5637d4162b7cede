"""Images of another size than a model was trained on: its positions are resampled to their patches.

The image processor in the model's folder says what size images have. Where that differs from `image_size` in
config.json and the family's positions can be resampled, the folder is read as the model of that size: with the
positions that stock transformers computes at every call, and with that `image_size`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.architectures import Family
from compressor.errors import ModelError
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json
from compressor.storage.tensors import Entry

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = lazy("torch")

_PROCESSOR = "preprocessor_config.json"
_LARGEST_SIDE = 4096


@dataclass(frozen=True)
class ResampledEntry(Entry):
    """Stored positions, read as those of another grid of patches, in float32.

    Attributes:
        original: the stored tensor.
        resample: makes the one of the other.
    """

    original: Entry = field(kw_only=True)
    resample: Callable[[torch.Tensor], torch.Tensor] = field(kw_only=True)

    def value(self, read: Callable[[Entry], Any]) -> Any:
        """Return the positions, float32 [1, tokens, width]."""
        return self.resample(self.original.value(read).to(torch.float32))


def sides(size: Any) -> tuple[int, int] | None:
    """Return height and width that `image_size` or a processor's setting states; None if it states no two sides."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    if isinstance(size, int):
        size = [size, size]
    if not isinstance(size, list | tuple) or len(size) != 2:
        return None
    height, width = size
    whole = all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE for side in (height, width))
    return (height, width) if whole else None


def processed_size(folder: Path) -> tuple[int, int] | None:
    """Return the height and width of the images that a folder's processor gives; None where its settings do not say."""
    try:
        file = own_file(folder, _PROCESSOR)
        settings = read_json(file) if file is not None else {}
    except ModelError:  # said where the processor is loaded
        return None
    cropped = settings.get("do_center_crop", "crop_size" in settings)
    return sides(settings.get("crop_size" if cropped else "size"))


def other_size(folder: Path, config: Mapping[str, Any], family: Family) -> int | None:
    """Return the side of the images that a folder's processor gives, where positions must be resampled to it.

    Stock transformers resamples from square grids of patches alone, and the result has to be one too.

    Args:
        folder: of the model.
        config: the keys of its config.json.
        family: its family.

    Returns:
        None where config.json states that size, or images of another cannot be read.
    """
    wanted, stated, patch = processed_size(folder), sides(config.get("image_size")), sides(config.get("patch_size"))
    if family.positions is None or wanted is None or stated is None or patch is None or wanted == stated:
        return None
    square = all(height == width for height, width in (wanted, stated, patch))
    return wanted[0] if square and min(wanted[0], stated[0]) >= patch[0] else None


def resize_images(folder: Path, config: Any, family: Family) -> int | None:
    """Let `config.image_size` be the size of a folder's images, in place.

    Returns:
        The side of images that config.json states, where positions are resampled for images of another; else None.
    """
    size = other_size(folder, vars(config), family)
    if size is None:
        return None
    stated = sides(config.image_size)
    assert stated is not None, "it differs from the other"
    config.image_size = size
    return stated[0]


def call_options(model: Any, pixels: Any) -> dict[str, bool]:
    """Return what a stock model must be told to resample its positions to images [batch, channels, height, width]."""
    if "interpolate_pos_encoding" not in inspect.signature(model.forward).parameters:
        return {}  # it has none, or resamples them unasked
    same = sides(getattr(model.config, "image_size", None)) == tuple(pixels.shape[2:])
    return {} if same else {"interpolate_pos_encoding": True}


def resampled_entry(model: nn.Module, path: str, entry: Entry, stated: int, size: int, patch: int) -> Entry:
    """Return stored positions as those of square images of another size.

    Args:
        model: the base model of a skeleton for images of `size`; its embeddings module knows how to resample.
        path: of the positions in it.
        entry: the stored positions, [1, tokens, width].
        stated: the side of images in config.json.
        size: the side of images as they come.
        patch: the side of a patch.

    Raises:
        ModelError: what is stored are no positions of the patches of images that config.json states.
    """
    parent, _, name = path.rpartition(".")
    module = model.get_submodule(parent)
    wanted = tuple(getattr(module, name).shape)
    tokens = wanted[1] - (size // patch) ** 2 + (stated // patch) ** 2
    if entry.shape != (1, tokens, wanted[2]):
        raise ModelError(
            f"{entry.stored} is {list(entry.shape)}; image_size {stated} in config.json says {[1, tokens, wanted[2]]}",
            hint="Take config.json from the same place as the weights.",
        )
    place = {key: getattr(entry, key) for key in ("file", "stored", "dtype", "offset")}
    resample = partial(_resampled, module, name, wanted, size)
    return ResampledEntry(**place, shape=wanted, original=entry, resample=resample)


def _resampled(module: Any, name: str, shape: tuple[int, ...], size: int, positions: torch.Tensor) -> torch.Tensor:
    before = getattr(module, name)
    setattr(module, name, torch.nn.Parameter(positions, requires_grad=False))
    try:
        with torch.no_grad():
            made: torch.Tensor = module.interpolate_pos_encoding(torch.empty(shape), size, size)
    finally:
        setattr(module, name, before)
    return made.contiguous()
