"""The two streams of activations, and how far each batch of them has come.

The *dense* stream flows through the blocks as they came, the *current* one through the blocks as they were changed.
Each knows for every batch at which point of the model its activations stand, so that nobody takes a block's output for
its input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch

from compressor.errors import ModelError
from compressor.model.token_reduction import TokenTrack
from compressor.model.token_select import Choice
from compressor.walk.activations import ActivationStore
from compressor.walk.calls import Call


class Point(IntEnum):
    """A point of a block at which a stream can stand."""

    INPUT = 0
    MIDDLE = 1
    OUTPUT = 2


def depth_of(index: int, point: Point) -> int:
    """Return how deep a point of block `index` lies; a block's output is the next one's input."""
    return 2 * index + point


class Stream:
    """The activations of every calibration batch at some point of the model, float32 [batch, tokens, width].

    By number it gives the last ones, wherever they stand; `read` and `put` name the point.
    """

    def __init__(self, store: ActivationStore, device: torch.device) -> None:
        """Keep them in `store`; what is read is on `device`."""
        self._store, self._device = store, device
        self._depths: dict[int, int] = {}

    def __getitem__(self, k: int) -> torch.Tensor:
        """Return the activations of batch `k` that were put last."""
        return self._store[k]

    def __setitem__(self, k: int, value: torch.Tensor) -> None:
        """Put activations of batch `k`; where they stand stays as it is."""
        self._store[k] = value

    def stands_at(self, k: int, depth: int) -> bool:
        """Tell whether batch `k` stands at that depth."""
        return self._depths.get(k) == depth

    def read(self, k: int, depth: int) -> torch.Tensor:
        """Return the activations of batch `k` at a depth; asking for what is gone, or not there yet, is a mistake."""
        found = self._depths.get(k)
        assert found == depth, f"batch {k} of the stream stands at depth {found}, asked for is {depth}"
        return self._store[k].to(self._device)

    def put(self, k: int, value: torch.Tensor, depth: int) -> None:
        """Store the activations of batch `k` at a depth; those before are gone.

        Raises:
            ModelError: they hold NaN or infinity.
        """
        if not is_finite(value):
            raise ModelError(
                f"block {(depth - 1) // 2} gives NaN or infinite activations",
                hint="The model overflows, or the pass is unstable on it; more calibration data or damping helps.",
            )
        self._store[k] = value
        self._depths[k] = depth

    def clear(self) -> None:
        """Drop everything."""
        self._store.clear()
        self._depths.clear()


def is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether all entries are finite. Minimum and maximum are NaN if any is; a mask takes ten times longer."""
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


@dataclass
class Streams:
    """Both streams with the calls of the blocks that they flow through; the walk and its views hold it together.

    Attributes:
        device: of the blocks.
        scratch: makes an empty store that shares the walk's memory budget.
        dense: through the blocks as they came.
        current: through the blocks as they were changed.
        flows_dense: whether the dense stream flows in this walk.
        flows_current: whether the current one does.
        calls: per batch and block, what the model passes to the block beside the stream.
        token_masks: per batch bool [batch, tokens], False at padding; None where nothing is padded.
        ends: per batch what is known of the tokens that leave the last block, where they have become fewer.
    """

    device: torch.device
    scratch: Callable[[], ActivationStore]
    dense: Stream = field(init=False)
    current: Stream = field(init=False)
    flows_dense: bool = True
    flows_current: bool = True
    calls: list[list[Call]] = field(default_factory=list)
    token_masks: list[torch.Tensor | None] = field(default_factory=list)
    ends: dict[int, TokenTrack] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the streams."""
        self.dense, self.current = (Stream(self.scratch(), self.device) for _ in range(2))

    def call(self, k: int, index: int) -> Call:
        """Return what the model passes to block `index` for batch `k`, on the device."""
        return self.calls[k][index].to(self.device)

    def mask(self, k: int, index: int, like: torch.Tensor | None) -> torch.Tensor | None:
        """Return bool [batch, tokens] in block `index`, False at padding, on the device; None where nothing is padded.

        Args:
            k: the batch.
            index: of the block.
            like: activations [batch, tokens, ...] that it is for: behind a reduction of texts, tokens are fewer. None:
                those that enter the block.
        """
        mask, call = self.token_masks[k], self.calls[k][index]
        if call.track is not None and call.track.mask is not None:
            mask, left = call.track.mask, None if call.choice is None else call.choice.valid
            if like is not None and left is not None and like.shape[1] == left.shape[1]:
                mask = left
        return None if mask is None else mask.to(self.device)

    def tell(self, k: int, index: int, track: TokenTrack, choice: Choice | None = None) -> None:
        """Tell block `index` of the tokens of batch `k`; there may be no such block."""
        if index < len(self.calls[k]):
            self.calls[k][index] = replace(self.calls[k][index], track=track, choice=choice)

    def forget_graph(self, k: int, index: int) -> None:
        """Let block `index`, whose choice stands, go without the graph that led to it: it is large."""
        call = self.calls[k][index]
        if call.track is not None and call.track.graph is not None:
            self.calls[k][index] = replace(call, track=replace(call.track, graph=None))
