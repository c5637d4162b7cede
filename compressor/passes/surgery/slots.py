"""Slots: the matrices of a block, read and written as [out, in] however they are stored.

    alone        the weight of a linear module
    stacked      equal groups of rows of one weight, one after another (gate and up of Phi-3)
    per head     rows of one weight that alternate head by head (query, key and value of GPT-NeoX)
    transposed   [in, out]: how a `Conv1D` stores whatever it holds (GPT-2)

Nothing else reads or writes the weight of a linear module of a block. A path in place of a slot means all that the
module at that path holds, which is one matrix to whoever does not look inside (a grid, a rotation); the empty path is
the module itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.architectures.family import Slot

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = lazy("torch")


def read(module: nn.Module, slot: Slot | str, *, head_dim: int | None = None) -> torch.Tensor:
    """Return the matrix [out, in] of a slot in `module`; it may share memory with what is stored: do not write to it.

    Args:
        module: a block, or whatever the slot's path starts from.
        slot: which matrix.
        head_dim: width of a head, for a slot whose rows alternate per head.
    """
    holder, slot = _found(module, slot)
    return _rows(_stored(holder), slot, head_dim)


def read_bias(module: nn.Module, slot: Slot | str, *, head_dim: int | None = None) -> torch.Tensor | None:
    """Return the bias [out] of a slot, None where it has none; else as `read`."""
    holder, slot = _found(module, slot)
    bias = getattr(holder, "bias", None)
    return None if bias is None else _rows(bias.data, slot, head_dim)


def write(
    module: nn.Module,
    slot: Slot | str,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    head_dim: int | None = None,
) -> None:
    """Give a slot another matrix [out, in], and another bias [out] if one is given; both are stored in float32.

    A weight that keeps its shape stays the parameter that it was, so an embedding's stays tied to the head. The matrix
    of a slot that shares its weight with others keeps its shape.
    """
    holder, slot = _found(module, slot)
    if slot.parts > 1:
        weight = _with_rows(_stored(holder), slot, weight, head_dim)
        bias = None if bias is None else _with_rows(holder.bias.data, slot, bias, head_dim)
    weight = weight.T if _transposed(holder) else weight
    _store(holder, _plain(weight), None if bias is None else _plain(bias))


def _found(module: nn.Module, slot: Slot | str) -> tuple[Any, Slot]:
    slot = Slot(slot) if isinstance(slot, str) else slot
    return module.get_submodule(slot.path), slot


def _transposed(holder: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(holder, Conv1D)


def _stored(holder: Any) -> torch.Tensor:
    """Return all that a module holds, [out of all slots, in]."""
    weight: torch.Tensor = holder.weight.data
    return weight.T if _transposed(holder) else weight


def _grouped(stored: torch.Tensor, slot: Slot, head_dim: int | None) -> torch.Tensor:
    """Return a view of `stored` [rows, …] as [heads, parts, rows of one head, …]; a stacked slot is all one head."""
    size = head_dim if slot.per_head else len(stored) // slot.parts
    assert size is not None, f"{slot.path}: rows alternate per head, whose width must be told"
    grouped: torch.Tensor = stored.unflatten(0, (-1, slot.parts, size))
    return grouped


def _rows(stored: torch.Tensor, slot: Slot, head_dim: int | None) -> torch.Tensor:
    return stored if slot.parts == 1 else _grouped(stored, slot, head_dim)[:, slot.part].flatten(0, 1)


def _with_rows(stored: torch.Tensor, slot: Slot, rows: torch.Tensor, head_dim: int | None) -> torch.Tensor:
    """Return a copy of `stored` in which a slot has other rows."""
    out = stored.clone()
    own = _grouped(out, slot, head_dim)[:, slot.part]
    own.copy_(rows.reshape(own.shape))
    return out


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32).contiguous()


def _store(holder: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    from compressor.model.modules import set_weight

    if holder.weight.shape == weight.shape and not holder.weight.is_meta:
        holder.weight.data = weight
        if bias is not None:
            holder.bias.data = bias
        return
    set_weight(holder, weight, bias)
    if _transposed(holder):
        holder.nx, holder.nf = weight.shape
