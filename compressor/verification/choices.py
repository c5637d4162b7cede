"""What a model in PyTorch keeps of its tokens, and which of them came near a tie, as the reference records it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.model.token_places import Mask, Places

KEPT, TIED = "kept_tokens", "kept_tokens.tied"
_TIE = 1e-5
"""Of the largest score: how far from the border one may lie that rounding in float32 carries across."""


class Choices:
    """What a module in PyTorch has kept in one forward pass, reduction by reduction."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._kept: list[Mask] = []
        self._tied: list[Mask] = []
        self._places: Places | None = None

    def __call__(self, reduction: Any, choice: Any, seen: Any) -> None:
        """Take one choice in (`compressor.model.reduced.told`)."""
        from compressor.model.token_margins import margins

        if self._places is None:
            self._places = Places(*seen.keys.shape[:2])
        self._tied.append(self._places.of(margins(reduction, seen).numpy() <= _TIE))
        self._places.go_on(choice.kept.numpy(), reduction.keep)
        self._kept.append(self._places.kept)

    @property
    def kept(self) -> Mask:
        """Which of the first tokens are left, [batch, reductions, tokens]."""
        return np.stack(self._kept, axis=1)

    def tensors(self, case: str) -> dict[str, NDArray[Any]]:
        """Return what the reference records of a probe; nothing of a model that keeps all tokens."""
        if not self._kept:
            return {}
        pairs = {KEPT: self.kept, TIED: np.stack(self._tied, axis=1)}
        return {f"{case}.{name}": np.packbits(mask, axis=-1) for name, mask in pairs.items()}


@contextmanager
def choices_of(module: Any) -> Iterator[Choices]:
    """While entered, collect what a module in PyTorch keeps; nothing where there is none."""
    found = Choices()
    if module is None:
        yield found
        return
    from compressor.model.reduced import told

    with told(module, found):
        yield found
