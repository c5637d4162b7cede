"""Activations of all calibration batches at one depth, in memory up to a budget and on disk beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compressor.errors import ResourceError


@dataclass(frozen=True)
class _OnDisk:
    file: Path
    shape: tuple[int, ...]


class Budget:
    """Bytes that activations may hold in memory, shared by all stores of a run."""

    def __init__(self, limit: int) -> None:
        """Start with `limit` bytes free."""
        self.free = limit

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; return whether they were free."""
        if size > self.free:
            return False
        self.free -= size
        return True


class ActivationStore:
    """float32 tensors by batch number; what does not fit the budget lies in `folder` and is read when asked for."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        """Keep files, if any are needed, in `folder`."""
        self._folder = folder
        self._budget = budget
        self._items: dict[int, torch.Tensor | _OnDisk] = {}

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._items)

    def __contains__(self, index: int) -> bool:
        """Tell whether a batch is there."""
        return index in self._items

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the activations [batch, tokens, width] of a batch."""
        item = self._items[index]
        if isinstance(item, torch.Tensor):
            return item
        return torch.from_numpy(np.fromfile(item.file, dtype=np.float32).reshape(item.shape))

    def __setitem__(self, index: int, value: torch.Tensor) -> None:
        """Replace the activations of a batch; those of the same shape are overwritten where they are.

        Overwriting in place avoids fragmenting the heap.

        Raises:
            ResourceError: they do not fit the budget and the disk is full.
        """
        value = value.detach().to("cpu", torch.float32).contiguous()
        old = self._items.get(index)
        if isinstance(old, torch.Tensor) and old.shape == value.shape:
            old.copy_(value)
            return
        self._give_back(index)
        if self._budget.take(value.nbytes):
            self._items[index] = value
            return
        file = self._folder / f"{id(self):x}-{index}.f32"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            value.numpy().tofile(file)
        except OSError as error:
            raise ResourceError(
                f"activations do not fit on disk in {self._folder.parent.name}: {error.strerror}",
                hint="Free some disk space, or lower calibration.samples.",
            ) from error
        self._items[index] = _OnDisk(file, tuple(value.shape))

    def _give_back(self, index: int) -> None:
        old = self._items.pop(index, None)
        if isinstance(old, torch.Tensor):
            self._budget.free += old.nbytes
        elif old is not None:
            old.file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Drop everything and give the budget back."""
        for index in list(self._items):
            self._give_back(index)
