"""FFN channels of one block and what its readers see: how they are cut and refit.

Written for matrices that are stored alone; `check_covered` refuses the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.errors import ModelError
from compressor.passes.surgery import slots

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.architectures import Family, Slot


def check_covered(method: str, family: Family) -> None:
    """Raise ModelError where a family's FFN is not made of separate matrices."""
    if any(slot.parts > 1 for slot in family.ffn.readers):
        raise ModelError(
            f"{method}: family {family.name} stacks its FFN matrices, which this method cannot cut yet",
            hint="Methods that do not change shapes (quantize) work on it.",
        )


def keep_rows(module: nn.Module, readers: Sequence[Slot], kept: torch.Tensor) -> None:
    """Cut readers down to the outputs `kept`."""
    for slot in readers:
        bias = slots.read_bias(module, slot)
        slots.write(module, slot, slots.read(module, slot)[kept], None if bias is None else bias[kept])


def keep_channels(module: nn.Module, family: Family, kept: torch.Tensor) -> None:
    """Cut an FFN down to the channels `kept`: rows of its readers, columns of its writer."""
    keep_rows(module, family.ffn.readers, kept)
    writer = family.ffn.writer
    slots.write(module, writer, slots.read(module, writer)[:, kept])


def compose(module: nn.Module, paths: Sequence[str], weight: torch.Tensor, offset: torch.Tensor | None) -> None:
    """Let readers at `paths` see weight·z + offset instead of z: W ← W·weight, b ← b + W·offset."""
    for path in paths:
        old, shift = slots.read(module, path).double(), slots.read_bias(module, path)
        moved = None if offset is None or shift is None else shift.double() + old @ offset
        slots.write(module, path, old @ weight, moved)
