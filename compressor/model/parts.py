"""The parts of a model of several towers, and how a whole model joins what they give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.architectures import JOINED, OWN_TYPE, TOWERS, Joined, Tower
from compressor.errors import ModelError, brief
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json
from compressor.storage.tensors import Checkpoint, stored_entries

SCALARS = "scalars"
"""Key of compression.json: name -> value of the tensors by which embeddings are joined."""
PARTS = "parts"
"""Key of compression.json: name of a part -> what it would say of that part by itself."""


def parts_of(folder: Path) -> Mapping[str, Tower]:
    """Return part -> tower of the model in a folder; none where it is no model of several that can be taken whole."""
    kind = _model_type(folder)
    return TOWERS[kind] if kind in JOINED else {}


def joined_by(folder: Path) -> Joined:
    """Return what the towers of the model in a folder make together.

    Raises:
        KeyError: it has no parts.
    """
    return JOINED[_model_type(folder)]


def read_scalars(folder: Path) -> dict[str, float]:
    """Return the numbers by which the towers' embeddings are joined, from a checkpoint.

    Raises:
        ModelError: it has none, or they are no single numbers.
    """
    stored = Checkpoint(stored_entries(folder))
    found = {}
    for name in joined_by(folder).scalars:
        if name not in stored:
            raise ModelError(f"the checkpoint has no tensor {name}, by which the towers' embeddings are joined")
        value = stored.tensor(name)
        if value.numel() != 1:
            raise ModelError(f"tensor {name} has the shape {list(value.shape)}; allowed: one number")
        found[name] = float(value.float())
    stored.close()
    return found


def image_token_of(folder: Path) -> int | None:
    """Return the token that stands for an image in a prompt; None for a model whose towers' embeddings are joined.

    Raises:
        ModelError: config.json does not state it, or cannot be read.
    """
    key = joined_by(folder).image_token
    if key is None:
        return None
    from compressor.model.source import read_config

    token = getattr(read_config(folder), key, None)
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise ModelError(f"config.json: {key} is {brief(token)}; allowed: the number of a token")
    return token


def stated_scalars(manifest: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    """Return the numbers that an artifact's manifest states.

    Raises:
        ModelError: it does not state them.
    """
    stated = manifest.get(SCALARS)
    values = stated if isinstance(stated, dict) else {}
    for name in names:
        if isinstance(values.get(name), bool) or not isinstance(values.get(name), int | float):
            raise ModelError(f"compression.json: {SCALARS}.{name} is {brief(values.get(name))}; allowed: a number")
    return {name: float(values[name]) for name in names}


def _model_type(folder: Path) -> str:
    try:
        file = own_file(folder, "config.json")
        kind = read_json(file).get("model_type") if file is not None else None
    except ModelError:  # whoever opens the model says what is wrong with it
        kind = None
    return kind.removeprefix(OWN_TYPE) if isinstance(kind, str) else ""
