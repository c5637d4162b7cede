"""Counts the bytes of tensors that are alive: what an algorithm needs, whatever the allocator makes of it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """While entered, sees every storage that an operator makes.

    Attributes:
        peak: the most bytes of such storages that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        if address not in self._sizes and storage.nbytes():
            self._sizes[address] = storage.nbytes()
            weakref.finalize(storage, self._sizes.pop, address, None)
            self.peak = max(self.peak, sum(self._sizes.values()))
