"""Running a block piece by piece, and statistics of the inputs that its linear modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.passes.numerics.moments import InputStats
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import Sharing, attention_sharings, ffn_sharings
from compressor.passes.surgery.observe import unpadded
from compressor.walk.calls import first_input, observing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.passes.numerics.rotation import Projection
    from compressor.walk import BlockView
else:
    torch = lazy("torch")

Weights = Callable[["BlockView", int], "torch.Tensor | None"]
"""Given a block and a batch: importance of its tokens [batch, tokens], or None where all count alike."""


def collect(
    view: BlockView,
    sharings: Iterable[Sharing],
    run: Callable[[int], None],
    *,
    group: int,
    weights: Weights,
) -> Mapping[str, InputStats]:
    """Return the statistics of each sharing's input by its name, over all calibration batches.

    Args:
        view: the block.
        sharings: what to watch; the input is that of the first module of each.
        run: runs the watched part of the block on batch k.
        group: channels of the blocks whose peaks are noted.
        weights: importance of a batch's tokens; padding never counts.
    """
    found: dict[str, InputStats] = {}
    first = {s.paths[0]: s.name for s in sharings}
    for k in range(len(view)):
        mask, importance = view.token_mask(k), weights(view, k)

        def note(
            path: str,
            inputs: torch.Tensor,
            mask: torch.Tensor | None = mask,
            importance: torch.Tensor | None = importance,
        ) -> None:
            stats = found.setdefault(first[path], InputStats(inputs.shape[-1], group, inputs.device))
            weighting = None if importance is None else unpadded(importance[..., None], mask)[:, 0]
            stats.add(unpadded(inputs, mask), weighting)

        with observing(view.module, first, note):
            run(k)
    return found


class Halves:
    """Runs a block up to each sharing in turn, and advances the streams to the middle between attention and FFN."""

    def __init__(self, block: BlockView, *, dense: bool, frame: Projection | None = None) -> None:
        """Begin at the block's input.

        Args:
            block: the block.
            dense: whether the dense stream is taken along.
            frame: the coordinates of the changed block's residual stream; None: those of the dense one.
        """
        self.block, self._dense, self._frame = block, dense, frame
        self._in_ffn = False

    def sharings(self) -> Iterator[Sharing]:
        """Yield the sharings in the order in which they compute; each must be changed before the next is asked for."""
        family = self.block.family
        yield from attention_sharings(family)
        self._to_middle()
        yield from ffn_sharings(family)

    def _to_middle(self) -> None:
        block = self.block
        for k in range(len(block)):
            if self._dense:
                block.put_dense_middle(k, block.to_middle(block.dense, block.dense_in(k), k))
            block.put_current_middle(k, block.to_middle(block.module, block.current_in(k), k))
        self._in_ffn = True

    def _stream(self, module: nn.Module, k: int) -> torch.Tensor:
        """Return the stream that the present half of the dense or the changed block starts from."""
        block = self.block
        if module is block.module:
            return block.current_middle(k) if self._in_ffn else block.current_in(k)
        return block.dense_middle(k) if self._in_ffn else block.dense_in(k)

    def input_of(self, module: nn.Module, sharing: Sharing, k: int) -> torch.Tensor:
        """Return the input of a sharing for batch `k`, [batch, tokens, width], in the dense or the changed block."""
        run = self.block.from_middle if self._in_ffn else self.block.to_middle
        stream = self._stream(module, k)
        found = first_input(module, sharing.paths[0], lambda: run(module, stream, k))
        return found.reshape(*stream.shape[:2], -1)

    def wanted(self, sharing: Sharing, k: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the path of each module, and what its weight should add: the dense output, its own bias taken off.

        For a writer the difference between the dense and the changed stream, to which it adds, is included.
        """
        block = self.block
        inputs = self.input_of(block.dense, sharing, k)
        for path in sharing.paths:
            out = block.dense.get_submodule(path)(inputs)
            bias = slots.read_bias(block.module, path)
            if path in (block.family.attention.output, block.family.ffn.writer):
                out = out + self._stream(block.dense, k)
                out = (out if self._frame is None else self._frame.stream(out)) - self._stream(block.module, k)
            yield path, out if bias is None else out - bias
