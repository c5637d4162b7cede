"""What an export leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ExportResult:
    """Outcome of one export.

    Attributes:
        files: files written, sorted by path.
        seconds: wall-clock time of the export.
        inputs: names of the graph's inputs, in order; empty for a checkpoint.
        outputs: names of the graph's outputs, in order; empty for a checkpoint.
        codes: name of stored codes -> the modules whose quantized weights they hold, one after another by outputs.
    """

    files: list[Path]
    seconds: float
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    codes: dict[str, list[str]] = field(default_factory=dict)
