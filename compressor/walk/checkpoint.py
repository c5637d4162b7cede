"""The checkpoint of a pass: one safetensors shard per finished block, with hashes, that a killed run goes on from.

When the last shard is written the folder becomes a model folder: the shards are its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compressor.errors import ModelError, ResourceError
from compressor.model.folder import ModelFolder
from compressor.storage.companions import copy_companions
from compressor.storage.grids import Grid
from compressor.storage.tensors import INDEX, Checkpoint, Entry, Plan, read_header, sha256_of, write_safetensors

STATE = "state.json"


def write_json(file: Path, content: Any) -> None:
    """Write JSON so that the file is there whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(file)


def _seal(key: str, part: Mapping[str, Any]) -> str:
    """Return the hash by which damage to what was noted of a finished part is seen."""
    content = [key, part["sha256"], part["note"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class ShardWriter:
    """Writes and finds again the finished parts of one pass.

    Attributes:
        done: finished shards by key, each with its sha256 and what was noted of it.
        damaged: whether there was a state that cannot be read, so that the pass starts over.
    """

    def __init__(self, folder: Path, source: ModelFolder, fingerprint: str) -> None:
        """Open the checkpoint in `folder`; shards of another fingerprint (inputs, options, versions) are dropped."""
        self.folder, self.source, self.fingerprint = folder, source, fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        self.damaged = False
        self.done: dict[str, dict[str, Any]] = self._read_state()

    def _read_state(self) -> dict[str, dict[str, Any]]:
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            done = dict(state["done"]) if state["fingerprint"] == self.fingerprint else {}
            self.damaged = any(part["seal"] != _seal(key, part) for key, part in done.items())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self.damaged = True
        if self.damaged:
            return {}
        files = {key: self._file(key) for key in done}
        return {k: part for k, part in done.items() if files[k].is_file() and sha256_of(files[k]) == part["sha256"]}

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def save(
        self,
        key: str,
        note: dict[str, Any],
        tensors: Mapping[str, torch.Tensor | Entry],
        *,
        grids: Mapping[str, Grid] | None = None,
        findings: bool = False,
    ) -> None:
        """Write one finished part under module names, in the dtype of the source, and note it as done.

        A tensor that lies on disk is given as its `Entry` and read when its turn comes.

        A weight with a grid is stored in float32, and the grid's tensors beside it; `grids` has the modules' names.

        Raises:
            ResourceError: the disk is full.
        """
        plans, parked = [], Checkpoint({})
        grids = grids or {}
        exact = {f"{module}.weight" for module in grids}
        beside = {f"{m}.{leaf}": tensor for m, grid in grids.items() for leaf, tensor in grid.tensors().items()}
        for name, tensor in {**tensors, **beside}.items():
            stored = name if findings else self._stored_name(name)
            as_it_is = findings or name in exact or name in beside
            dtype = str(tensor.dtype if as_it_is else self._stored_dtype(name)).removeprefix("torch.")
            make = partial(parked.read, tensor) if isinstance(tensor, Entry) else partial(_same, tensor)
            plans.append(Plan(stored, dtype, tuple(tensor.shape), make))
        try:
            digest = write_safetensors(self._file(key), plans)
            part = {"sha256": digest, "note": note}
            self.done[key] = {**part, "seal": _seal(key, part)}
            write_json(self.folder / STATE, {"fingerprint": self.fingerprint, "done": self.done})
        except OSError as error:
            raise ResourceError(
                f"cannot write {key}.safetensors: {error.strerror}", hint="Free some disk space."
            ) from error
        parked.close()

    def _stored_name(self, name: str) -> str:
        return self.source.weights.entry(name).stored if name in self.source.weights else name

    def _stored_dtype(self, name: str) -> torch.dtype:
        weights = self.source.weights
        dtype: torch.dtype = weights.dtype(name if name in weights else weights.names()[0])
        return dtype

    def note(self, key: str) -> dict[str, Any]:
        """Return what was noted when `key` was saved."""
        return dict(self.done[key]["note"])

    def read(self, key: str, names: list[str] | None = None) -> Checkpoint:
        """Return the tensors of a finished part; `names` are module names whose stored names are looked up."""
        entries: dict[str, Entry] = read_header(self._file(key))
        if names is not None:
            entries = {name: entries[self._stored_name(name)] for name in names}
        return Checkpoint(entries)

    def finish(self, config: dict[str, Any], keys: list[str]) -> Path:
        """Make the folder a model folder of the parts `keys`; return it.

        Raises:
            ModelError: a part is missing.
        """
        if missing := [key for key in keys if key not in self.done]:
            raise ModelError(f"the pass ended without its parts {', '.join(missing)}")
        names = {name: self._file(key).name for key in keys for name in read_header(self._file(key))}
        write_json(self.folder / INDEX, {"metadata": {}, "weight_map": names})
        write_json(self.folder / "config.json", config)
        copy_companions(self.source.path, self.folder)
        return self.folder
