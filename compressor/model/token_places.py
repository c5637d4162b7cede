"""Where the tokens that go on stood before any went: places in the first sequence, for people and for comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.model.blueprint import Reduction

Mask = NDArray[np.bool_]
KEPT = "kept_tokens."
"""What the names of the values begin with by which a graph says which tokens go on."""


def kept_name(reduction: Reduction) -> str:
    """Return the name of that value of a reduction."""
    return f"{KEPT}{'output' if reduction.site == 'output' else reduction.block}"


class Places:
    """Follows the tokens of a batch from reduction to reduction.

    A token that takes others up stays at its own place. One that is made of several has none.
    """

    def __init__(self, batch: int, tokens: int) -> None:
        """Begin with `tokens` tokens for each of `batch` samples."""
        self._now = np.tile(np.arange(tokens), (batch, 1))
        self._tokens = tokens

    def go_on(self, kept: NDArray[Any], count: int) -> None:
        """Take a reduction in.

        Args:
            kept: places of the tokens that go on, in the sequence as it is now, [batch, kept].
            count: tokens behind the reduction; those beyond `kept` are new ones.
        """
        stay = np.take_along_axis(self._now, kept.astype(np.int64), axis=1)
        self._now = np.pad(stay, ((0, 0), (0, count - kept.shape[1])), constant_values=self._tokens)

    def of(self, chosen: Mask) -> Mask:
        """Return which of the first tokens [batch, tokens] those are that are chosen [batch, tokens now]."""
        found = np.zeros((len(self._now), self._tokens + 1), np.bool_)
        rows = np.arange(len(self._now))[:, None]
        np.logical_or.at(found, (np.broadcast_to(rows, self._now.shape), self._now), chosen)
        return found[:, :-1]

    @property
    def kept(self) -> Mask:
        """Which of the first tokens are still there, [batch, tokens]."""
        return self.of(np.ones(self._now.shape, np.bool_))


def kept_masks(kept: Sequence[NDArray[Any]], counts: Sequence[int], tokens: int) -> Mask:
    """Return which of the first tokens are there behind each reduction, [batch, reductions, tokens].

    Args:
        kept: of each reduction, places of the tokens that go on in the sequence before it, [batch, kept].
        counts: tokens behind each.
        tokens: before the first.
    """
    places, masks = Places(len(kept[0]), tokens), []
    for some, count in zip(kept, counts, strict=True):
        places.go_on(some, count)
        masks.append(places.kept)
    return np.stack(masks, axis=1)
