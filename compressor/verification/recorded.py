"""What the reference records beside outputs, held against an artifact; a reference of version 1 records none of it.

Where the reference cannot be read, `parity.reference` says why, and nothing is said here.
"""

from __future__ import annotations

from pathlib import Path

from compressor.errors import ModelError
from compressor.storage.artifact import runtime_model
from compressor.verification.companions import check_companions, check_same
from compressor.verification.reference_file import recorded_companions, recorded_tables
from compressor.verification.strangers import REFERENCE
from compressor.verification.tables import check_tables
from compressor.verification.verdict import Check
from compressor.verification.weights import StoredWeights


def check_rows(weights: StoredWeights) -> list[Check]:
    """Hold the rows of embeddings to the reference."""
    try:
        recorded = recorded_tables(weights.folder / REFERENCE)
    except ModelError:
        return []
    return check_tables(weights, recorded) if recorded else []


def check_beside(folder: Path, dense: Path | None) -> list[Check]:
    """Hold the files beside the model to the dense model's, where there is one, and to the reference.

    Raises:
        ModelError: the dense model's config.json cannot be read.
    """
    checks = check_same(folder, dense) if dense is not None else []
    try:
        record = recorded_companions(folder / REFERENCE)
    except ModelError:
        return checks
    if record is not None:
        checks += check_companions(folder, record, exported=runtime_model(folder) is None)
    return checks
