"""Whether the Python code of a checkpoint is ours: `trust_remote_code=True` runs what config.json names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.exporters.remote_code import MODULE, remote_code
from compressor.model.blueprint import SECTION
from compressor.model.folder import open_model
from compressor.storage.json_files import read_json
from compressor.verification.verdict import Check, yes

_READ_BY_CODE = ("paths", "head_dim")


def check_code(folder: Path, *, checkpoint: bool, manifest: Mapping[str, Any]) -> list[Check]:
    """Generate the modelling file again from config.json and compare it, and what config.json names of it.

    Args:
        folder: the artifact.
        checkpoint: whether it holds safetensors; a graph needs no code.
        manifest: names the release that wrote it.

    Raises:
        ModelError: config.json describes no model.
    """
    config, file = read_json(folder / "config.json"), folder / f"{MODULE}.py"
    if not checkpoint or SECTION not in config:
        named = config.get("auto_map")
        return [
            yes("code.modeling", not file.exists(), f"{file.name} is there, and the artifact needs no code"),
            yes("code.auto_map", not named, f"config.json names code that the artifact does not need: {named}"),
        ]
    source, wanted = remote_code(open_model(folder), config)
    found = file.read_bytes() if file.is_file() else b""
    release = (manifest.get("versions") or {}).get("compressor")
    reason = f"{file.name} is not what compressor generates from config.json (the artifact states release {release})"
    stated = {key: config[SECTION].get(key) for key in _READ_BY_CODE}
    differing = sorted(key for key in ("auto_map", "model_type", "architectures") if config.get(key) != wanted[key])
    differing += sorted(key for key in _READ_BY_CODE if stated[key] != wanted[SECTION][key])
    return [
        yes("code.modeling", found == source.encode(), reason),
        yes("code.auto_map", not differing, f"config.json names other code than ours: {', '.join(differing)}"),
    ]
