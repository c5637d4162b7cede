"""FFN channels of one block and what its readers see: how they are cut and refit.

Written for separate linear matrices [out, in]; `check_covered` refuses the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.architectures import Family
else:
    torch = lazy("torch")


def check_covered(method: str, family: Family) -> None:
    """Raise ModelError where a family's FFN is not made of separate [out, in] matrices."""
    if family.transposed or any(slot.parts > 1 for slot in family.ffn.readers):
        raise ModelError(
            f"{method}: family {family.name} stacks or transposes its FFN matrices, which this method cannot cut yet",
            hint="Methods that do not change shapes (quantize) work on it.",
        )


def matrix(module: nn.Module, path: str) -> torch.Tensor:
    """Return the weight [out, in] of the linear module at `path`."""
    return torch.as_tensor(module.get_submodule(path).weight.data)


def bias(module: nn.Module, path: str) -> torch.Tensor | None:
    """Return the bias of the linear module at `path`, None where it has none."""
    found: Any = getattr(module.get_submodule(path), "bias", None)
    return None if found is None else torch.as_tensor(found.data)


def assign(module: nn.Module, path: str, weight: torch.Tensor, offset: torch.Tensor | None) -> None:
    """Give the linear module at `path` a float32 weight, and a bias if `offset` is one."""
    from compressor.model.skeleton import set_weight

    set_weight(
        module.get_submodule(path),
        weight.to(torch.float32).contiguous(),
        None if offset is None else offset.to(torch.float32).contiguous(),
    )


def keep_channels(module: nn.Module, family: Family, kept: torch.Tensor) -> None:
    """Cut an FFN down to the channels `kept`: rows of its readers, columns of its writer."""
    for path in family.ffn.reader_paths:
        offset = bias(module, path)
        assign(module, path, matrix(module, path)[kept], None if offset is None else offset[kept])
    writer = family.ffn.writer
    assign(module, writer, matrix(module, writer)[:, kept], None)


def compose(module: nn.Module, paths: Sequence[str], weight: torch.Tensor, offset: torch.Tensor | None) -> None:
    """Let readers at `paths` see weight·z + offset instead of z: W ← W·weight, b ← b + W·offset."""
    for path in paths:
        old, shift = matrix(module, path).double(), bias(module, path)
        moved = None if offset is None or shift is None else shift.double() + old @ offset
        assign(module, path, old @ weight, moved)
