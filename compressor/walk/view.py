"""One block as a pass sees it: its weights, and the activations of both streams that reach it."""

from __future__ import annotations

import torch
from torch import nn

from compressor.architectures import Family, LayerShape
from compressor.machine.memory import trim_heap
from compressor.model.blocks import ffn_half, past_attention, scaled
from compressor.model.folder import ModelFolder
from compressor.model.llm_block import LlmBlock
from compressor.model.reduced import ReducedBlock
from compressor.storage.grids import Grid
from compressor.storage.tensors import Checkpoint
from compressor.walk.activations import ActivationStore
from compressor.walk.calls import Call, input_of, run_block
from compressor.walk.streams import Point, Stream, Streams, depth_of


class BlockView:
    """One block, its weights and the calibration activations that reach it.

    Attributes:
        index: position of the block; `count` is how many there are.
        module: the block, to be changed in place; float32.
        dense: the block with the weights that the pass received; the same object where the dense stream is not needed.
        layer: its widths before the change.
        grids: by path in the block: the grids on which a pass has put weights, which are then kept in float32.
    """

    def __init__(
        self, streams: Streams, source: ModelFolder, index: int, prefix: str, module: nn.Module, dense: nn.Module
    ) -> None:
        """Made by the walk; `prefix` is what the names of the block's tensors begin with in the whole model."""
        self._streams, self._weights, self._prefix = streams, source.weights, prefix
        self.index, self.count = index, len(source.shapes.layers)
        self.module, self.dense = module, dense
        self.family: Family = source.family
        self.layer: LayerShape = source.shapes.layers[index]
        self.head_dim = source.shapes.head_dim
        self.grids: dict[str, Grid] = {}
        if isinstance(dense, ReducedBlock | LlmBlock):
            self._choose(dense, streams.dense if streams.flows_dense else streams.current)

    def _choose(self, block: ReducedBlock | LlmBlock, stream: Stream) -> None:
        """Let one stream choose the tokens that go; whoever runs the block keeps to that, so rows stay aligned."""
        for k in range(len(self)):
            hidden, call = stream.read(k, self._depth(Point.INPUT)), self.call(k)
            track = call.track or block.start(hidden, self._streams.token_masks[k])
            choice, after = block.look(hidden, *call.args, track=track, **call.kwargs)
            self._streams.tell(k, self.index, track, choice)
            for later in range(self.index + 1, self.count):
                self._streams.tell(k, later, after)
            self._streams.ends[k] = after
            if self.index:
                self._streams.forget_graph(k, self.index - 1)

    def install(self, module: nn.Module) -> None:
        """Put another module in the changed block's place: the block itself, as the pass's blueprint has it."""
        if isinstance(module, ReducedBlock | LlmBlock) and module is not self.module:
            self._choose(module, self._streams.current)
        self.module = module

    def _depth(self, point: Point) -> int:
        return depth_of(self.index, point)

    def name_of(self, path: str) -> str:
        """Return the name in the whole model of the block's submodule at `path`."""
        return f"{self._prefix}{path}"

    def __len__(self) -> int:
        """Number of calibration batches."""
        return len(self._streams.calls)

    def call(self, k: int) -> Call:
        """Return the arguments of batch `k` for this block."""
        return self._streams.call(k, self.index)

    def token_mask(self, k: int, *, like: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return bool [batch, tokens], False at padding, or None where nothing is padded.

        Of the tokens that enter the block, or of activations `like` [batch, tokens, ...]: behind a reduction of texts,
        tokens are fewer.
        """
        return self._streams.mask(k, self.index, like)

    def dense_in(self, k: int) -> torch.Tensor:
        """Return the dense stream at this block's input, [batch, tokens, width]; gone after any `put_dense…(k)`."""
        return self._streams.dense.read(k, self._depth(Point.INPUT))

    def current_in(self, k: int) -> torch.Tensor:
        """Return the current stream at this block's input, [batch, tokens, width]; gone after any `put_current…(k)`."""
        return self._streams.current.read(k, self._depth(Point.INPUT))

    def scratch(self) -> ActivationStore:
        """Return an empty store that shares the walk's memory budget; to be cleared by whoever asked for it."""
        return self._streams.scratch()

    def put_dense(self, k: int, out: torch.Tensor) -> None:
        """Store the dense stream at this block's output; `finish` computes it for batches where the pass has not."""
        self._streams.dense.put(k, out, self._depth(Point.OUTPUT))

    def put_current(self, k: int, out: torch.Tensor) -> None:
        """Store the current stream at this block's output; `finish` computes it for batches where the pass has not.

        It must come from `to_middle` and `from_middle` of the changed, sealed block, so that a resumed run computes
        the same bits.
        """
        self._streams.current.put(k, out, self._depth(Point.OUTPUT))

    def put_dense_middle(self, k: int, middle: torch.Tensor) -> None:
        """Overwrite `dense_in(k)` with its `to_middle`, from which `finish` goes on."""
        self._streams.dense.put(k, middle, self._depth(Point.MIDDLE))

    def put_current_middle(self, k: int, middle: torch.Tensor) -> None:
        """Overwrite `current_in(k)` with its exact `to_middle`; the attention half must be sealed before."""
        self._streams.current.put(k, middle, self._depth(Point.MIDDLE))

    def dense_middle(self, k: int) -> torch.Tensor:
        """Return what `put_dense_middle(k)` kept."""
        return self._streams.dense.read(k, self._depth(Point.MIDDLE))

    def current_middle(self, k: int) -> torch.Tensor:
        """Return what `put_current_middle(k)` kept."""
        return self._streams.current.read(k, self._depth(Point.MIDDLE))

    def seal(self) -> None:
        """Round the changed weights to their stored dtype; to be called before the changed block's outputs are used."""
        exact = {f"{path}.weight" for path in self.grids}
        for name, parameter in self.module.named_parameters():
            if name not in exact:
                round_to_storage(parameter, self._weights, self._prefix + name)

    def to_middle(self, module: nn.Module, hidden: torch.Tensor, k: int) -> torch.Tensor:
        """Return the residual stream between attention and FFN: what the FFN half of `module` starts from.

        Behind the reduction of a block that has one. For a `parallel` family there is no such point: the block's input
        is returned.
        """
        if self.family.residual == "parallel":
            return hidden
        ffn = self.family.ffn
        path = ffn.norm if self.family.residual == "pre" else ffn.readers[0].path
        seen = input_of(module, path, hidden, self.call(k), raw=True)  # the stream itself
        return seen if seen.dim() == 3 else seen.reshape(*hidden.shape[:2], -1)  # OPT joins batch and tokens

    def middle_of_heads(self, heads: torch.Tensor, k: int) -> torch.Tensor:
        """Return exactly `to_middle` of `current_in(k)`, given the input of attention's output matrix.

        For `pre` families only. It saves a second run of attention.
        """
        current = self.current_in(k)
        carried = past_attention(self.module, current)
        attention = self.family.attention
        written = self.module.get_submodule(attention.output)(heads.to(current.device)).reshape(carried.shape)
        middle = torch.as_tensor(carried + scaled(self.module, attention.scale, written))
        if isinstance(self.module, ReducedBlock) and self.module.reduction is not None:
            call = self.call(k)
            assert call.choice is not None and call.track is not None, "made when the view was"
            middle = self.module.combine(call.choice, middle, call.track)
        return middle

    def from_middle(self, module: nn.Module, middle: torch.Tensor, k: int) -> torch.Tensor:
        """Return the block's output [batch, tokens, width] from what `to_middle` returned."""
        family = self.family
        if family.residual == "parallel":
            return run_block(module, middle, self.call(k))
        out = ffn_half(module, family, middle)
        return module.reduced(out, self.call(k).choice) if isinstance(module, LlmBlock) else out

    def finish(self) -> None:
        """Advance both streams for the batches that the pass did not advance itself."""
        trim_heap()  # return what the fits have freed before activations are allocated
        streams = self._streams
        for k in range(len(self)):
            if streams.flows_dense:
                self._go_on(streams.dense, self.dense, k)
            if streams.flows_current:
                self._go_on(streams.current, self.module, k)

    def _go_on(self, stream: Stream, module: nn.Module, k: int) -> None:
        """Bring a stream to this block's output, from wherever in the block it stands."""
        if stream.stands_at(k, self._depth(Point.OUTPUT)):
            return
        halfway = stream.stands_at(k, self._depth(Point.MIDDLE))
        run = self.from_middle if halfway else self.forward
        before = stream.read(k, self._depth(Point.MIDDLE if halfway else Point.INPUT))
        stream.put(k, run(module, before, k), self._depth(Point.OUTPUT))

    def forward(self, module: nn.Module, hidden: torch.Tensor, k: int) -> torch.Tensor:
        """Run a whole block, by way of its middle."""
        return self.from_middle(module, self.to_middle(module, hidden, k), k)


def round_to_storage(parameter: nn.Parameter, weights: Checkpoint, name: str) -> None:
    """Round a parameter to the dtype in which the model called `name` is stored, or a new one will be."""
    stored = weights.dtype(name if name in weights else weights.names()[0])
    if stored != parameter.dtype:
        parameter.data = parameter.data.to(stored).to(parameter.dtype)
