"""From a run's figures to what people and programs read: report.json, report.html, README.md and junit.xml."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ResourceError
from compressor.report._format import without_paths
from compressor.report.schema import build_ratios, build_report, check_report, clean_report
from compressor.report.seal import REPORT, encoded, render, sealed

__all__ = ["build_ratios", "build_report", "check_report", "clean_report", "without_paths", "write_reports"]


def write_reports(folder: Path, report: Mapping[str, Any], recipe_text: str) -> dict[str, Any]:
    """Write report.json, report.html, README.md and junit.xml into an artifact folder.

    All four are rendered before the first is written, and each appears whole or not at all; report.json comes last.

    Args:
        folder: the artifact folder; what lies in it decides what the card says about loading.
        report: a version 1 report; figures that are not finite become null and fail it (`clean_report`).
        recipe_text: the recipe as it was run.

    Returns:
        The report as written.

    Raises:
        VerificationError: `report` is not a version 1 report.
        CompressorError: it holds a value that JSON has no form for.
        ResourceError: a file cannot be written.
    """
    clean = clean_report(report)
    texts = render(folder, clean, recipe_text)
    report = sealed(folder, clean, texts)
    texts[REPORT] = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in texts.items():
        _write(folder / name, text)
    return report


def _write(file: Path, text: str) -> None:
    """Write a file through a temporary sibling, so that a reader never sees half of it."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise ResourceError(f"{file}: cannot write the report: {error}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(encoded(text))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(file)
    except OSError as error:
        raise ResourceError(f"{file}: cannot write the report: {error}", hint="Free some space.") from error
    finally:
        temporary.unlink(missing_ok=True)
