"""Running a block piece by piece, and statistics of the inputs that its linear modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.passes.numerics.moments import InputStats
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import Sharing, attention_sharings, ffn_sharings
from compressor.passes.surgery.observe import attention_half, ffn_half, unpadded
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
        importance = weights(view, k)

        def note(path: str, inputs: torch.Tensor, k: int = k, importance: torch.Tensor | None = importance) -> None:
            mask = view.token_mask(k, like=inputs)
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
        self._heads = block.scratch()  # inputs of attention's output matrix: attention need not run again
        self._ahead: set[int] = set()  # batches whose dense stream stands behind attention

    def sharings(self) -> Iterator[Sharing]:
        """Yield the sharings in the order in which they compute; each must be changed before the next is asked for."""
        family = self.block.family
        yield from attention_sharings(family)
        self._to_middle()
        yield from ffn_sharings(family)

    def _to_middle(self) -> None:
        block = self.block
        for k in range(len(block)):
            if self._dense and k not in self._ahead:
                block.put_dense_middle(k, block.to_middle(block.dense, block.dense_in(k), k))
            if k in self._heads:
                middle = block.middle_of_heads(self._heads[k], k)
            else:
                middle = block.to_middle(block.module, block.current_in(k), k)
            block.put_current_middle(k, middle)
        self._heads.clear()
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
        block, output = self.block, self.block.family.attention.output
        if module is block.module and sharing.paths == (output,) and block.family.residual == "pre":
            self._heads[k] = found
        return found.reshape(*stream.shape[:2], -1)

    def wanted(self, sharing: Sharing, k: int) -> torch.Tensor:
        """Return what should be there for batch `k`; `wanted_cross` makes of its moments what each weight should give.

        For readers that is their input in the dense block. For a writer it is its output in the dense block and the
        difference between the dense and the changed stream, to which it adds; the dense stream goes on behind it.
        """
        block = self.block
        if not self._writes(sharing):
            return self.input_of(block.dense, sharing, k)
        half, put = (ffn_half, block.put_dense) if self._in_ffn else (attention_half, block.put_dense_middle)
        stream = self._stream(block.dense, k)
        after, added = half(block, block.dense, stream, k)
        out = added + stream
        out = (out if self._frame is None else self._frame.stream(out)) - self._stream(block.module, k)
        put(k, after)
        self._ahead.add(k)
        return out

    def _writes(self, sharing: Sharing) -> bool:
        return sharing.paths in ((self.block.family.attention.output,), (self.block.family.ffn.writer,))

    def wanted_cross(self, sharing: Sharing, path: str, stats: InputStats) -> torch.Tensor:
        """Return E[w y xᵀ], float64, y what the weight at `path` should make of x: its own bias is taken off."""
        bias, cross = slots.read_bias(self.block.module, path), stats.cross
        offset = None if bias is None else -bias.double()
        if not self._writes(sharing):
            own = slots.read_bias(self.block.dense, path)
            cross = slots.read(self.block.dense, path).double() @ cross
            offset = None if own is None or offset is None else own.double() + offset
        return cross if offset is None else cross + torch.outer(offset, stats.mean)
