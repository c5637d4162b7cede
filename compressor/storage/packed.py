"""Codes of quantized weights in 32-bit words, as the compressed-tensors format `pack-quantized` has them.

A row of n codes of b bits is one string of n · b bits, low bits first, cut into little-endian words; the last one is
padded with zeros: [rows, n] becomes [rows, ⌈n · b / 32⌉]. Stored codes are unsigned, as ours are; zero points
[outputs, groups] are signed bytes, less by 2^(b − 1) than ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.storage.grids import SCALE, ZERO_POINT, Grid, GridSpec
from compressor.storage.tensors import Entry

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

PACKED, SHAPE = "weight_packed", "weight_shape"
WORD = 32


def words(count: int, bits: int) -> int:
    """Return how many words hold `count` codes."""
    return -(-count * bits // WORD)


def checkpoint_bytes(spec: GridSpec, outputs: int, inputs: int, *, linear: bool) -> int:
    """Return the bytes of a quantized weight [outputs, inputs] in this format, grid included.

    Weights with float inputs are packed into words beside their shape, all others take a byte per code; those of linear
    modules with calibrated inputs have the grid of these beside them.
    """
    total = grid_bytes(spec, outputs, inputs)
    if spec.activations == "static" and linear:
        total += 4 + 1
    if spec.activations == "float" and linear:
        return total + outputs * words(inputs, spec.bits) * WORD // 8 + 2 * 8
    return total + outputs * inputs


def grid_bytes(spec: GridSpec, outputs: int, inputs: int) -> int:
    """Return the bytes of scales (float32) and zero points (a byte each) of a weight [outputs, inputs]."""
    return outputs * spec.groups(inputs) * (4 if spec.symmetric else 5)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return uint8 codes [rows, n] as int32 words [rows, ⌈n · bits / 32⌉]; `bits` divides 8."""
    rows, count = codes.shape
    padded = torch.zeros(rows, words(count, bits) * WORD // bits, dtype=torch.uint8)
    padded[:, :count] = codes
    parts = padded.view(rows, -1, 8 // bits)
    joined = parts[..., 0].clone()
    for place in range(1, 8 // bits):
        joined |= parts[..., place] << (place * bits)
    return joined.view(torch.int32)


def unpack_words(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the uint8 codes [rows, count] in int32 words; `bits` divides 8."""
    joined = packed.contiguous().view(torch.uint8)
    parts = [(joined >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).view(packed.shape[0], -1)[:, :count]


def signed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return unsigned codes of `bits` bits, uint8, as the signed bytes that are less by 2^(bits − 1)."""
    return (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def unsigned(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return what `signed` was given."""
    return (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)


@dataclass(frozen=True)
class PackedEntry(Entry):
    """A weight [outputs, inputs] of which codes and grid are stored; it is read dequantised, in float32.

    Attributes:
        spec: of its grid.
        parts: entries of its tensors, by the last part of their names.
    """

    spec: GridSpec = field(kw_only=True)
    parts: Mapping[str, Entry] = field(kw_only=True)

    def value(self, read: Callable[[Entry], Any]) -> Any:
        """Return the weight, float32 [outputs, inputs]."""
        return self.grid(read).values(self._codes(read))

    def grid(self, read: Callable[[Entry], Any]) -> Grid:
        """Return the grid, numbers included."""
        if self.spec.symmetric:
            return Grid(self.spec, read(self.parts[SCALE]))
        return Grid(self.spec, read(self.parts[SCALE]), unsigned(read(self.parts[ZERO_POINT]), self.spec.bits))

    def _codes(self, read: Callable[[Entry], Any]) -> torch.Tensor:
        if PACKED in self.parts:
            return unpack_words(read(self.parts[PACKED]), self.spec.bits, self.shape[1])
        return unsigned(read(self.parts["weight"]), self.spec.bits)


def packed_entry(entry: Entry, spec: GridSpec, stored: Mapping[str, Entry], read: Callable[[Entry], Any]) -> Entry:
    """Return the weight that `entry`, its codes, and the tensors stored beside them make up.

    Args:
        entry: of `X.weight_packed`, or of a weight in bytes.
        spec: the grid that config.json states for X.
        stored: all tensors of the folder, by stored name.
        read: reads a tensor; only `X.weight_shape` is read, two numbers.

    Raises:
        ModelError: a tensor is missing, or has another shape than the grid asks for.
    """
    stem, _, leaf = entry.stored.rpartition(".")
    if leaf == PACKED and f"{stem}.{SHAPE}" not in stored:
        raise ModelError(f"{stem} is quantized, but the checkpoint has no {stem}.{SHAPE}")
    shape = tuple(int(n) for n in read(stored[f"{stem}.{SHAPE}"])) if leaf == PACKED else entry.shape
    if len(shape) != 2:
        raise ModelError(f"{stem}.{SHAPE} does not state outputs and inputs: {list(shape)}")
    outputs, inputs = shape
    groups = spec.groups(inputs)
    wanted: dict[str, tuple[int, ...]] = {SCALE: (outputs, groups)}
    wanted[leaf] = (outputs, words(inputs, spec.bits)) if leaf == PACKED else shape
    if not spec.symmetric:
        wanted[ZERO_POINT] = (outputs, groups)
    parts = {}
    for name, sides in wanted.items():
        part = stored.get(f"{stem}.{name}")
        if part is None or part.shape != sides:
            found = "missing" if part is None else f"of shape {list(part.shape)}"
            raise ModelError(f"{stem}.{name} is {found}; a grid of {spec.bits} bits needs {list(sides)}")
        parts[name] = part
    return PackedEntry(entry.file, f"{stem}.weight", shape, "float32", spec=spec, parts=parts)
