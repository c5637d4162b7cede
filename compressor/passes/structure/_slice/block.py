"""One block made narrower: its matrices projected to other coordinates of the stream and, if wanted, refitted.

Refitting goes in the order of computation, each step on what the steps before it have made of the calibration data:

1. attention readers W → W·M, M the least-squares map from the narrow normed stream to the dense one;
2. attention writer: from the heads' outputs to what the narrow stream still lacks of the dense one after attention;
3. FFN readers as 1; 4. FFN writer as 2, after the cheapest channels (OBS) have gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.passes.numerics.elimination import eliminate
from compressor.passes.numerics.moments import LinearFit, Moments, fit
from compressor.passes.numerics.rotation import Projection, normed
from compressor.passes.surgery import slots
from compressor.passes.surgery.channels import keep_rows
from compressor.passes.surgery.observe import norm_eps, unpadded
from compressor.passes.surgery.stream import set_readers
from compressor.walk.calls import first_input, input_of

if TYPE_CHECKING:
    import torch

    from compressor.architectures import LayerShape
    from compressor.walk import BlockView
else:
    torch = lazy("torch")


def reader_fit(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]], frame: Projection, damping: float
) -> tuple[LinearFit, Moments]:
    """Fit the map M [d, k] from narrow to dense normed tokens; pairs are (dense [n, d], narrow [n, k], weights)."""
    wide, narrow = frame.matrix.shape
    moments = Moments(narrow, wide, frame.matrix.device)
    for dense, current, weights in pairs:
        moments.add(current / frame.scale, dense, weights)
    return fit(moments, damping=damping, prior=frame.matrix), moments


class BlockSlicer:
    """Changes one block, in place."""

    def __init__(
        self,
        block: BlockView,
        frames: Sequence[Projection],
        layer: LayerShape,
        *,
        shortcuts: bool,
        damping: float,
    ) -> None:
        """Prepare to bring `block` to the widths of `layer`.

        Args:
            block: the block.
            frames: coordinates of the stream at its input, between its halves, and at its output.
            layer: widths after.
            shortcuts: whether the coordinates differ, so that shortcut matrices carry the stream on.
            damping: of the fits.
        """
        from compressor.model.blocks import ShortcutBlock

        self.block, self.layer, self.damping = block, layer, damping
        self.before, self.middle, self.after = frames
        self.centre = block.family.norm == "layer"
        self.shortcuts: tuple[Any, Any] = (None, None)
        if shortcuts:
            module = ShortcutBlock(block.module, block.family, layer)
            block.module = module
            self.shortcuts = (module.attention_shortcut, module.ffn_shortcut)

    def _part(self, path: str) -> Any:
        return self.block.module.get_submodule(path)

    def project(self) -> dict[str, float]:
        """Rotate and slice, without data."""
        attention, ffn = self.block.family.attention, self.block.family.ffn
        halves = (
            (attention.norm, attention.readers, attention.output, self.before, self.middle, self.shortcuts[0]),
            (ffn.norm, ffn.reader_paths, ffn.writer, self.middle, self.after, self.shortcuts[1]),
        )
        for norm, readers, writer, before, after, shortcut in halves:
            set_readers(self._part(norm), [self._part(path) for path in readers], before.matrix, before)
            self._set_writer(writer, shortcut, *self._projected(writer, before, after, shortcut))
        return {}

    def refit(self) -> dict[str, float]:
        """Rotate, slice and fit; return the relative errors of the fits."""
        block, attention = self.block, self.block.family.attention
        streams = ((block.dense_in(k), block.current_in(k), block.token_mask(k)) for k in range(len(block)))
        error = self._fit_readers(attention.norm, attention.readers, self.before, streams)
        block.seal()
        return {"attention_reader_error": error, **self._refit_attention(), **self._refit_ffn()}

    def _refit_attention(self) -> dict[str, float]:
        """Fit attention's writer and bring both streams to the middle; attention itself runs once per stream."""
        block, path = self.block, self.block.family.attention.output
        heads = block.scratch()
        moments = self._moments(path, self.before, self.middle, self.shortcuts[0])
        for k in range(len(block)):
            dense = block.to_middle(block.dense, block.dense_in(k), k)
            block.put_dense_middle(k, dense)
            current, mask = block.current_in(k), block.token_mask(k)
            heads[k] = inner = input_of(block.module, path, current, block.call(k))
            inner = inner.reshape(*current.shape[:2], -1)
            inner, current, dense = (unpadded(x, mask) for x in (inner, current, dense))
            self._see(moments, inner, current, dense, self.middle, self.shortcuts[0])
        weight, bias = self._projected(path, self.before, self.middle, self.shortcuts[0])
        found = fit(moments, damping=self.damping, bias=bias is not None, prior=weight)
        self._set_writer(path, self.shortcuts[0], found.weight, found.bias)
        block.seal()
        for k in range(len(block)):
            block.put_current_middle(k, block.middle_of_heads(heads[k], k))
        heads.clear()
        return {"attention_writer_error": found.error}

    def _refit_ffn(self) -> dict[str, float]:
        """Fit the FFN's readers, choose its channels and fit its writer; bring the dense stream to the output."""
        block, ffn = self.block, self.block.family.ffn
        count = range(len(block))
        streams = ((block.dense_middle(k), block.current_middle(k), block.token_mask(k)) for k in count)
        reader_error = self._fit_readers(ffn.norm, ffn.reader_paths, self.middle, streams)
        norm = self._part(ffn.norm)
        moments = self._moments(ffn.writer, self.middle, self.after, self.shortcuts[1])
        for k in count:
            out = block.from_middle(block.dense, block.dense_middle(k), k)
            block.put_dense(k, out)
            mask = block.token_mask(k)
            current, wanted = (unpadded(x, mask) for x in (block.current_middle(k), out))
            self._see(moments, self._channels(norm(current)), current, wanted, self.after, self.shortcuts[1])
        weight, bias = self._projected(ffn.writer, self.middle, self.after, self.shortcuts[1])
        keep, width = self.layer.intermediate_size, block.layer.intermediate_size
        kept = None
        if keep < width:
            kept = self._choose(moments, keep, prior=weight, bias=bias is not None)
            keep_rows(block.module, ffn.readers, kept)
        found = fit(moments, kept, damping=self.damping, bias=bias is not None, prior=weight)
        self._set_writer(ffn.writer, self.shortcuts[1], found.weight, found.bias)
        return {"ffn_reader_error": reader_error, "ffn_writer_error": found.error, "kept_channels": float(keep)}

    def _choose(self, moments: Moments, keep: int, *, prior: torch.Tensor, bias: bool) -> torch.Tensor:
        """Return the sorted indices of the inputs that stay."""
        whole = fit(moments, damping=self.damping, bias=bias, prior=prior).weight
        gram = (moments.centred() if bias else moments).gram
        return eliminate(whole, gram, keep=keep, damping=self.damping).kept(keep, whole.shape[1])

    def _fit_readers(self, norm_path: str, paths: Sequence[str], frame: Projection, streams: Iterable[Any]) -> float:
        norm = self._part(norm_path)
        eps = norm_eps(norm)

        def pairs() -> Iterable[tuple[torch.Tensor, torch.Tensor, None]]:
            for dense, current, mask in streams:
                both = (normed(unpadded(x, mask), eps, centre=self.centre) for x in (dense, current))
                yield (*both, None)  # type: ignore[misc]

        found, _ = reader_fit(pairs(), frame, self.damping)
        set_readers(norm, [self._part(path) for path in paths], found.weight, frame)
        return found.error

    def _projected(
        self, writer: str, before: Projection, after: Projection, shortcut: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a writer's weight and bias in the coordinates behind it, the shortcut's columns beside its own."""
        module = self.block.module
        weight, bias = after.writer(slots.read(module, writer)), slots.read_bias(module, writer)
        if shortcut is not None:
            weight = torch.cat([weight, before.shortcut(after)], 1)
        return weight, None if bias is None else after.stream(bias.double())

    def _moments(self, writer: str, before: Projection, after: Projection, shortcut: Any) -> Moments:
        inputs = slots.read(self.block.module, writer).shape[1] + (before.width if shortcut is not None else 0)
        return Moments(inputs, after.width, after.matrix.device)

    @staticmethod
    def _see(
        moments: Moments,
        inner: torch.Tensor,
        current: torch.Tensor,
        dense: torch.Tensor,
        after: Projection,
        shortcut: Any,
    ) -> None:
        """Note tokens of a writer: its inputs, and what it must add to the stream that is carried past it."""
        wanted = after.stream(dense)
        if shortcut is None:
            moments.add(inner, wanted - current)
        else:
            moments.add(torch.cat([inner, current], -1), wanted)

    def _set_writer(self, writer: str, shortcut: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        from compressor.model.modules import set_vector

        own = weight.shape[1] if shortcut is None else weight.shape[1] - shortcut.in_features
        slots.write(self.block.module, writer, weight[:, :own], bias)
        family = self.block.family
        scale = family.attention.scale if writer == family.attention.output else family.ffn.scale
        if scale is not None:  # folded into the writer when the block was opened
            set_vector(self.block.module, scale, torch.ones(len(weight), device=weight.device))
        if shortcut is not None:
            slots.write(shortcut, "", weight[:, own:])

    def _channels(self, normed: torch.Tensor) -> torch.Tensor:
        """Return the FFN channels [tokens, channels] of normed tokens [tokens, k]."""
        from compressor.model.blocks import run_ffn

        block = self.block
        return first_input(block.module, block.family.ffn.writer, lambda: run_ffn(block.module, block.family, normed))
