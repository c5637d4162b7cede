"""The file of an artifact that records what the exported model computed on its probes: read, and taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from compressor.errors import ModelError, summary
from compressor.storage.json_files import parse_json
from compressor.verification.cases import Case
from compressor.verification.tables import tables_in

VERSION = 2
"""Of the file; version 1 had fewer probes and recorded nothing of the files beside the model. Both are read."""


def recorded_companions(path: Path) -> dict[str, Any] | None:
    """Return what the reference says of the files beside the model; None where an earlier version wrote it.

    Raises:
        ModelError: it is missing or cannot be read.
    """
    found = read_reference(path)[1].get("companions")
    return found if isinstance(found, dict) else None


def recorded_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return all tensors of the reference by name.

    Raises:
        ModelError: it is missing or cannot be read.
    """
    return read_reference(path)[0]


def recorded_tables(path: Path) -> dict[str, NDArray[Any]]:
    """Return what the reference says of the rows of embeddings, by parameter name.

    Raises:
        ModelError: it is missing or cannot be read.
    """
    return tables_in(read_reference(path)[0])


def read_reference(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors of the reference by name, and what it says of its probes.

    Raises:
        ModelError: it is missing or cannot be read.
    """
    import safetensors

    if not path.is_file():
        raise ModelError(f"{path.parent.name}/{path.name} is missing: nothing tells what the exported model computed")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as handle:
            facts = _checked(parse_json(handle.metadata()["reference"], "its list of probes"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, facts  # noqa: SIM118
    except (safetensors.SafetensorError, ModelError, OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} cannot be read: {summary(error)}") from error


def _checked(facts: Any) -> dict[str, Any]:
    """Return what a reference says of its probes, in the form in which it was written.

    Raises:
        TypeError, ValueError, LookupError: it has another form.
    """
    if facts["version"] not in (1, VERSION):
        raise ValueError(f"it is not of version 1 to {VERSION}")
    cases = [Case(**{**entry, "chunks": tuple(entry["chunks"])}) for entry in facts["cases"]]
    sizes = [size for case in cases for size in case.chunks]
    if not isinstance(facts["task"], str) or not cases or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("it names no task, no probe, or a probe without tokens")
    return dict(facts)
