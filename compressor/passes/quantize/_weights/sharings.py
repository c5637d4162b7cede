"""The linear modules of a block, grouped by the input that they share, and statistics of that input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.architectures import Family
    from compressor.model.folder import ModelFolder
    from compressor.passes.numerics.rotation import Projection
    from compressor.walk.walk import BlockView
else:
    torch = lazy("torch")

Weights = Callable[["BlockView", int], "torch.Tensor | None"]
"""Given a block and a batch: importance of its tokens [batch, tokens], or None where all count alike."""


@dataclass(frozen=True)
class Sharing:
    """Linear modules of a block that read one input.

    Attributes:
        name: `attention`, `attention_output`, `ffn` or `ffn_writer`.
        paths: the modules, in the order of the family's table.
        norm: path of the norm whose output they read; None where the input is not normed.
    """

    name: str
    paths: tuple[str, ...]
    norm: str | None = None


def attention_sharings(family: Family) -> tuple[Sharing, ...]:
    """Return the groups of the attention half, in the order in which they are computed."""
    attention = family.attention
    norm = attention.norm if family.residual != "post" else None
    return (
        Sharing("attention", attention.readers, norm),
        Sharing("attention_output", (attention.output,)),
    )


def ffn_sharings(family: Family) -> tuple[Sharing, ...]:
    """Return the groups of the feed-forward half."""
    norm = family.ffn.norm if family.residual != "post" else None
    return (Sharing("ffn", family.ffn.reader_paths, norm), Sharing("ffn_writer", (family.ffn.writer,)))


def linear_paths(family: Family) -> tuple[str, ...]:
    """Return the paths of all linear modules of a block, in the order in which they are computed."""
    return tuple(path for s in (*attention_sharings(family), *ffn_sharings(family)) for path in s.paths)


def check_covered(method: str, family: Family) -> None:
    """Raise ModelError where a family stores matrices as [inputs, outputs]."""
    if family.transposed:
        raise ModelError(f"{method}: family {family.name} stores its matrices transposed, which is not covered yet")


def block_names(source: ModelFolder) -> list[str]:
    """Return the module names of all linear modules of all blocks, in the order in which they are computed."""
    from compressor.model.skeleton import base_prefix

    prefix = f"{base_prefix(source.skeleton())}{source.family.blocks}"
    return [f"{prefix}.{i}.{path}" for i in range(len(source.shapes.layers)) for path in linear_paths(source.family)]


def embedding_name(source: ModelFolder) -> str | None:
    """Return the module name of the token embedding; None for image models."""
    if source.task == "image-classification":
        return None
    model = source.skeleton()
    wanted = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def head_name(source: ModelFolder) -> str | None:
    """Return the module name of the output head over the vocabulary; None without one, or if it is the embedding."""
    if source.task != "text-generation" or source.shapes.tied:
        return None
    model = source.skeleton()
    wanted = model.get_output_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is wanted)


class InputStats:
    """Statistics of one input as it streams past: H = E[w x xᵀ], E[|x|], max |x|, and peaks of its blocks.

    Products are made in float32, sums over batches in float64.

    Attributes:
        count: sum of the tokens' weights.
        group: channels of a block.
        largest: max |x| per channel, [width] float32.
    """

    def __init__(self, width: int, group: int, device: torch.device | str = "cpu") -> None:
        """Start with nothing seen of an input of `width` channels in blocks of `group`."""
        self.group = group
        self.count = 0.0
        self._gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._abs = torch.zeros(width, dtype=torch.float64, device=device)
        self._peaks = torch.zeros(-(-width // group), dtype=torch.float64, device=device)
        self.largest = torch.zeros(width, device=device)
        self._tokens = 0
        self._cross: dict[str, torch.Tensor] = {}

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """See tokens [tokens, width] with weights [tokens] (None: 1 each)."""
        weighted = rows if weights is None else rows * weights[:, None]
        self._gram += weighted.T @ rows
        size = rows.abs()
        self._abs += size.sum(0)
        self.largest = torch.maximum(self.largest, size.amax(0))
        self._peaks += torch.stack([part.amax(1).double().square().sum() for part in size.split(self.group, dim=1)])
        self.count += float(len(rows) if weights is None else weights.sum())
        self._tokens += len(rows)

    def want(self, path: str, wanted: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Note what the module at `path` should make, [tokens, outputs], of tokens [tokens, width]."""
        weighted = wanted if weights is None else wanted * weights[:, None]
        cross = weighted.T @ rows
        self._cross[path] = self._cross[path] + cross if path in self._cross else cross.double()

    def cross(self, path: str) -> torch.Tensor:
        """E[w y xᵀ] of what the module at `path` should make of x, [outputs, width] float64."""
        return self._cross[path] / self.count

    @property
    def gram(self) -> torch.Tensor:
        """H, [width, width] float64."""
        if self.count <= 0:
            raise DataError("calibration.data: not one token to calibrate on")
        return self._gram / self.count

    @property
    def mean_abs(self) -> torch.Tensor:
        """E[|x|] per channel, [width] float64."""
        return self._abs / max(self._tokens, 1)

    def rounding_error(self, weight: torch.Tensor) -> float:
        """Return E‖W(x − x̂)‖² where x̂ has every block of x rounded to 8-bit codes of its own range.

        The error of rounding is taken as uniform over a step of max|x| / 127, W as [outputs, width].
        """
        steps = (self._peaks / max(self._tokens, 1)) / 127**2 / 12
        return float((weight.double().square().sum(0) * steps.repeat_interleave(self.group)[: weight.shape[1]]).sum())


def real(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the tokens of a batch [batch, tokens, width] as rows [tokens, width], without padding."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if mask is None else flat[mask.reshape(-1)]


@contextmanager
def observing(module: nn.Module, paths: Iterable[str], note: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """While entered, call `note` with the path and the input of every submodule in `paths` that runs."""

    def hook(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _, args: note(path, args[0])

    with ExitStack() as stack:
        for path in paths:
            stack.callback(module.get_submodule(path).register_forward_pre_hook(hook(path)).remove)
        yield


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
            weighting = None if importance is None else real(importance[..., None], mask)[:, 0]
            stats.add(real(inputs, mask), weighting)

        with observing(view.module, first, note):
            run(k)
    return found


class _Seen(Exception):
    """Ends a forward pass once the input that was wanted is there."""


class Halves:
    """Runs the two halves of a block piece by piece, and takes the streams from one half to the next."""

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
        seen: list[torch.Tensor] = []

        def note(_: str, inputs: torch.Tensor) -> None:
            seen.append(inputs)
            raise _Seen

        run = self.block.from_middle if self._in_ffn else self.block.to_middle
        stream = self._stream(module, k)
        with observing(module, sharing.paths[:1], note), suppress(_Seen):
            run(module, stream, k)
        return seen[0].reshape(*stream.shape[:2], -1)

    def wanted(self, sharing: Sharing, k: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the path of each module, and what its weight should add: the dense output, its own bias taken off.

        A writer should also make up for what the changed stream that it is added to lacks of the dense one.
        """
        block = self.block
        inputs = self.input_of(block.dense, sharing, k)
        for path in sharing.paths:
            out = block.dense.get_submodule(path)(inputs)
            bias = block.module.get_submodule(path).bias
            if path in (block.family.attention.output, block.family.ffn.writer):
                out = out + self._stream(block.dense, k)
                out = (out if self._frame is None else self._frame.stream(out)) - self._stream(block.module, k)
            yield path, out if bias is None else out - bias
