"""Weights in the layouts that the operators read: a row is one contiguous piece of memory.

| format | tensors |
|---|---|
| f32, f16 | values [rows, columns] |
| bf16 | the upper halves of float32 values as uint16 [rows, columns] |
| int8 | codes uint8 [rows, blocks, 32], or [rows, 1, columns] with one scale for a row |
| int4 | codes uint8 [rows, blocks, 16]: byte j of a block holds code 2j in its low four bits and 2j + 1 in its high |

Quantized: value = (code − zero) · scale, with scale float32 [rows, blocks] and zero uint8 [1] or [rows, blocks]; blocks
run along the columns, ⌈columns / 32⌉ of them, the last one padded. It is the layout of com.microsoft MatMulNBits for a
matrix [N = rows, K = columns] in blocks of 32, but for the zero points, of which each has a byte of its own here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor_kernels._errors import ArgumentError

BLOCK = 32
"""Codes of one block."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Weight:
    """A matrix [rows, columns] as the operators read it; the module says how.

    Attributes:
        format: "f32", "f16", "bf16", "int8" or "int4".
        shape: rows and columns.
        data: values or codes.
        scale: of quantized formats, [rows, blocks].
        zero: of quantized formats, [1] or [rows, blocks].
    """

    format: str
    shape: tuple[int, int]
    data: Array
    scale: Array | None = None
    zero: Array | None = None

    @property
    def tensors(self) -> list[Array]:
        """The tensors in the order of an operator's inputs."""
        return [self.data, *(t for t in (self.scale, self.zero) if t is not None)]

    def values(self) -> NDArray[np.float64]:
        """Return the exact values that the operator computes with, [rows, columns]."""
        rows, columns = self.shape
        if self.format == "bf16":
            return (self.data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if self.scale is None or self.zero is None:
            return self.data.astype(np.float64)
        codes = self.data
        if self.format == "int4":
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
        grid = codes.astype(np.float64) - self.zero.astype(np.float64).reshape(*_over(self.zero), 1)
        spread = grid * self.scale.astype(np.float64)[..., None]
        return np.ascontiguousarray(spread.reshape(rows, -1)[:, :columns])


def _over(zero: Array) -> tuple[int, ...]:
    return zero.shape if zero.ndim == 2 else (1, 1)


def pack_floats(values: Array, format: str = "f32") -> Weight:
    """Store a matrix [rows, columns] in a float format; bf16 rounds to the nearest, ties to even.

    Raises:
        ArgumentError: not a matrix, or no such format.
    """
    matrix = _matrix(values).astype(np.float32)
    if format == "f32":
        return Weight(format, _shape(matrix), np.ascontiguousarray(matrix))
    if format == "f16":
        return Weight(format, _shape(matrix), matrix.astype(np.float16))
    if format != "bf16":
        raise ArgumentError(f"format {format!r}: allowed are f32, f16, bf16")
    bits = np.ascontiguousarray(matrix).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return Weight(format, _shape(matrix), np.where(np.isnan(matrix), np.uint16(0x7FC0), rounded))


def pack_codes(codes: Array, scale: Array, zero: Array | int | None = None, *, bits: int, group_size: int) -> Weight:
    """Lay out the codes of a matrix that is quantized already.

    Args:
        codes: uint8 [rows, columns], below 2^bits.
        scale: [rows, groups], groups along the columns.
        zero: one for all, or [rows, groups]; default 2^(bits − 1).
        bits: 4 or 8.
        group_size: columns that share a scale: a multiple of 32, whose scale is repeated for each block of 32; or, for
            8 bits, 0 where the whole row shares one.

    Raises:
        ArgumentError: shapes or numbers that do not fit.
    """
    codes, (rows, columns) = _matrix(codes), _shape(_matrix(codes))
    if bits not in (4, 8):
        raise ArgumentError(f"bits {bits}: allowed are 4 and 8")
    if codes.dtype != np.uint8 or int(codes.max(initial=0)) >= 2**bits:
        raise ArgumentError(f"codes must be uint8 below {2**bits}")
    if group_size < 0 or group_size % BLOCK or (group_size == 0 and bits == 4):
        raise ArgumentError(
            f"group_size {group_size}: allowed are multiples of {BLOCK}, and 0 (a whole row) for 8 bits"
        )
    groups = -(-columns // group_size) if group_size else 1
    if scale.shape != (rows, groups):
        raise ArgumentError(f"scale {list(scale.shape)}: {[rows, groups]} is needed")
    points = np.asarray(2 ** (bits - 1) if zero is None else zero)
    if points.size != 1 and points.shape != (rows, groups):
        raise ArgumentError(f"zero {list(points.shape)}: [1] or {[rows, groups]} is needed")
    points = points.astype(np.uint8).reshape(1) if points.size == 1 else points.astype(np.uint8)
    width = BLOCK if group_size else columns
    blocks = -(-columns // width)

    def repeated(values: Array) -> Array:
        return np.ascontiguousarray(np.repeat(values, max(group_size // BLOCK, 1), axis=1)[:, :blocks])

    laid = np.pad(codes, [(0, 0), (0, blocks * width - columns)]).reshape(rows, blocks, width)
    if bits == 4:
        laid = laid[..., ::2] | laid[..., 1::2] << 4
    scales = repeated(scale.astype(np.float32))
    zeros = points if points.ndim == 1 else repeated(points)
    return Weight(f"int{bits}", (rows, columns), np.ascontiguousarray(laid), scales, zeros)


def quantize(values: Array, *, bits: int, group_size: int = BLOCK, symmetric: bool = True) -> Weight:
    """Round a matrix [rows, columns] to the nearest codes and lay them out; groups run along the columns.

    Args:
        values: the matrix.
        bits: 4 or 8.
        group_size: see `pack_codes`.
        symmetric: one zero point 2^(bits − 1) for all; otherwise each group has its own, and its range is used whole.

    Raises:
        ArgumentError: see `pack_codes`.
    """
    matrix = _matrix(values).astype(np.float32)
    rows, columns = matrix.shape
    size = group_size or columns
    padded = np.pad(matrix, [(0, 0), (0, -columns % size)], mode="edge").reshape(rows, -1, size)
    if symmetric:
        half = 2 ** (bits - 1)
        scale = np.abs(padded).max(axis=2, initial=0) / np.float32(half - 1)
        zero = np.full(scale.shape, half, np.float32)
    else:
        low, high = np.minimum(padded.min(axis=2, initial=0), 0), np.maximum(padded.max(axis=2, initial=0), 0)
        scale = (high - low) / np.float32(2**bits - 1)
        zero = np.rint(-low / np.where(scale > 0, scale, 1))
    steps = np.where(scale > 0, scale, 1)[..., None]
    codes = np.clip(np.rint(padded / steps) + zero[..., None], 0, 2**bits - 1).astype(np.uint8)
    points = None if symmetric else zero
    return pack_codes(codes.reshape(rows, -1)[:, :columns], scale, points, bits=bits, group_size=group_size)


def _matrix(values: Array) -> Array:
    if values.ndim != 2:
        raise ArgumentError(f"a weight has 2 dimensions, not {values.ndim}")
    return values


def _shape(matrix: Array) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]
