"""The two products on numpy arrays, through ctypes: for PyTorch artifacts and tests. One thread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressor_kernels._errors import ArgumentError, KernelError
from compressor_kernels._library import FORMATS, Matrix, library
from compressor_kernels._weights import Array, Weight

Floats = NDArray[np.float32]


def row_skip_matmul(x: Array, weight: Weight, thresholds: Array, *, dense_from: int = 0) -> Floats:
    """Return (x where |x| > threshold, else 0) · W without reading the rows of the zeros; NaN is no zero.

    Args:
        x: float32 [..., K].
        weight: W, [K, N].
        thresholds: float32 [1] or [K].
        dense_from: the number of tokens from which on the dense path is taken; 0 decides by what was measured.

    Returns:
        float32 [..., N].

    Raises:
        ArgumentError: shapes or types that do not fit.
        KernelError: memory ran out.
    """
    inputs, limits = _floats(x, "x"), _floats(thresholds, "thresholds")
    _check(inputs.shape[-1] == weight.shape[0], f"x has width {inputs.shape[-1]}, the weight {weight.shape[0]} rows")
    _check(limits.size in (1, weight.shape[0]), f"{limits.size} thresholds: 1 or {weight.shape[0]} are needed")
    tokens = inputs.size // inputs.shape[-1] if inputs.shape[-1] else 0
    result = np.empty((*inputs.shape[:-1], weight.shape[1]), np.float32)
    matrix = _describe(weight)
    code = library().ck_row_skip(
        matrix, inputs.ctypes.data, tokens, limits.ctypes.data, limits.size, dense_from, None, result.ctypes.data
    )
    return _done(code, result)


def sparse_gated_mlp(
    x: Array, gate: Array, up: Weight, down: Weight, thresholds: Array, *, dense_from: int = 0
) -> Floats:
    """Return Σ gate_h · (up_h · x) · down_h over the neurons with |gate_h| > threshold; NaN is above it.

    Args:
        x: float32 [..., K].
        gate: float32 [..., H]: the gate's activations.
        up: [H, K].
        down: [H, N].
        thresholds: float32 [1] or [H].
        dense_from: as for `row_skip_matmul`.

    Returns:
        float32 [..., N].

    Raises:
        ArgumentError: shapes or types that do not fit.
        KernelError: memory ran out.
    """
    inputs, gates, limits = _floats(x, "x"), _floats(gate, "gate"), _floats(thresholds, "thresholds")
    _check(inputs.shape[-1] == up.shape[1], f"x has width {inputs.shape[-1]}, up {up.shape[1]} columns")
    _check(up.shape[0] == down.shape[0], f"up has {up.shape[0]} rows, down {down.shape[0]}")
    _check(gates.shape == (*inputs.shape[:-1], up.shape[0]), f"gate {list(gates.shape)} does not fit x and up")
    _check(limits.size in (1, up.shape[0]), f"{limits.size} thresholds: 1 or {up.shape[0]} are needed")
    tokens = inputs.size // inputs.shape[-1] if inputs.shape[-1] else 0
    result = np.empty((*inputs.shape[:-1], down.shape[1]), np.float32)
    first, second = _describe(up), _describe(down)
    pointers = (inputs.ctypes.data, gates.ctypes.data, tokens, limits.ctypes.data, limits.size)
    return _done(library().ck_gated_mlp(first, second, *pointers, dense_from, None, result.ctypes.data), result)


def _describe(weight: Weight) -> Matrix:
    """Return a view of a weight for the library; the weight must outlive it."""
    rows, columns = weight.shape
    for tensor in weight.tensors:
        _check(tensor.flags.c_contiguous, "a tensor of a weight is not contiguous")
    if weight.scale is None or weight.zero is None:
        return Matrix(FORMATS[weight.format], rows, columns, columns, 0, 0, weight.data.ctypes.data, None, None)
    blocks, size = weight.data.shape[1:]
    scale, zero = weight.scale.ctypes.data, weight.zero.ctypes.data
    one = int(weight.zero.ndim == 1)
    return Matrix(
        FORMATS[weight.format], rows, columns, blocks * size, blocks, one, weight.data.ctypes.data, scale, zero
    )


def _floats(array: Array, name: str) -> Floats:
    _check(array.dtype == np.float32, f"{name} must be float32, not {array.dtype}")
    _check(array.ndim >= 1, f"{name} is a scalar")
    return np.ascontiguousarray(array)


def _check(right: bool, message: str) -> None:
    if not right:
        raise ArgumentError(message)


def _done(code: int, result: Floats) -> Floats:
    if code:
        raise KernelError({1: "memory ran out", 2: "shapes do not fit"}.get(code, f"error {code}"))
    return result
