"""Whether every row of every embedding is the exported model's.

A probe uses some tokens and some positions. What an artifact stores for all others is held to the reference by one
number for each row of a table: its sum with fixed signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.measure.runner import Runner
from compressor.measure.torch_runner import TorchRunner
from compressor.verification.verdict import Check, yes
from compressor.verification.weights import FLOATS, StoredWeights

_PREFIX = "rows."
_ROWS = 4096
_ERROR = 0.01
"""Of a row's sum over its scale: float16, in which the sums are recorded, has three digits, bfloat16 weights two."""


def table_record(runner: Runner) -> dict[str, NDArray[np.float16]]:
    """Return the sums of the rows of all embeddings, by the names under which the reference keeps them.

    Args:
        runner: of the compressed model; only one in PyTorch has tables.
    """
    if not isinstance(runner, TorchRunner):
        return {}
    return {f"{_PREFIX}{name}": _sums(table).astype(np.float16) for name, table in runner.tables().items()}


def tables_in(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return name of the parameter -> sums of its rows, of the tensors of a reference."""
    return {name.removeprefix(_PREFIX): sums for name, sums in tensors.items() if name.startswith(_PREFIX)}


def check_tables(weights: StoredWeights, recorded: Mapping[str, NDArray[Any]]) -> list[Check]:
    """Compare the tables that are stored as floats, under their parameter's name, row by row with what was recorded.

    Raises:
        ModelError: a tensor cannot be read.
    """
    wrong = []
    stored = {name for name, (dtype, *_) in weights.table().items() if dtype in FLOATS}
    for name, sums in recorded.items():
        found = next((n for n in (name, name.partition(".")[2]) if n in stored), None)
        if found is None:  # quantized tables are compared as codes
            continue
        table = weights.array(found)
        rows = _differing(_sums(table), sums.astype(np.float64)) if table.ndim == 2 else None
        if rows is None:
            wrong.append(f"{name} has the shape {list(table.shape)}, the exported model {len(sums)} rows")
        elif len(rows):
            wrong.append(f"{name} differs from the exported model's in {len(rows)} rows, first in row {rows[0]}")
    return [yes("weights.tables", not wrong, "; ".join(wrong))]


def _differing(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64] | None:
    if found.shape != wanted.shape:
        return None
    scale = np.maximum(np.abs(wanted), max(float(np.sqrt(np.mean(np.square(wanted)))), 1e-12))
    return np.flatnonzero(~(np.abs(found - wanted) <= _ERROR * scale))


def _sums(table: NDArray[Any]) -> NDArray[np.float64]:
    """Return, for each row [rows, width], the sum of its entries with fixed signs over the root of the width."""
    width = table.shape[1]
    hashed = (np.arange(width, dtype=np.uint64) * np.uint64(2654435761)) >> np.uint64(17)
    signs = (hashed & np.uint64(1)).astype(np.float64) * 2.0 - 1.0
    parts = [table[start : start + _ROWS].astype(np.float64) @ signs for start in range(0, len(table), _ROWS)]
    return np.asarray(np.concatenate(parts) / np.sqrt(width))
