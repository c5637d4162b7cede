"""One block as a pass sees it: its weights, and the activations of both streams that reach it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compressor.architectures import Family, LayerShape
from compressor.machine.memory import trim_heap
from compressor.model.skeleton import ShortcutBlock, run_ffn
from compressor.storage.grids import Grid, GridSpec
from compressor.walk.activations import ActivationStore
from compressor.walk.calls import Call, input_of, run_block

if TYPE_CHECKING:
    from compressor.walk.walk import Walk


@dataclass(frozen=True)
class Change:
    """What a pass did to one block.

    Attributes:
        layer: widths after the change.
        figures: measured numbers by name, such as `reconstruction_error` (relative) or `kept_channels`.
        grids: the grids of quantized weights, by the path of their module in the block.
    """

    layer: LayerShape
    figures: dict[str, float] = field(default_factory=dict)
    grids: dict[str, GridSpec] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Change:
        """Return the change that `to_json` described."""
        layer = {**data["layer"], "residual": tuple(data["layer"]["residual"])}
        return cls(LayerShape(**layer), dict(data["figures"]), {p: GridSpec(**g) for p, g in data["grids"].items()})


class BlockView:
    """One block, its weights and the calibration activations that reach it.

    Attributes:
        index: position of the block; `count` is how many there are.
        module: the block, to be changed in place; float32.
        dense: the same block with its weights as they came (the same object while nothing may change it).
        layer: its widths before the change.
        grids: by path in the block: the grids on which a pass has put weights, which are then kept in float32.
    """

    def __init__(self, walk: Walk, index: int, module: nn.Module, dense: nn.Module) -> None:
        """Made by the walk."""
        self._walk = walk
        self.index, self.count = index, walk.count
        self.module, self.dense = module, dense
        self.family: Family = walk.source.family
        self.layer: LayerShape = walk.source.shapes.layers[index]
        self.head_dim = walk.source.shapes.head_dim
        self.grids: dict[str, Grid] = {}
        self._dense_done: set[int] = set()
        self._current_done: set[int] = set()
        self._dense_middle: set[int] = set()
        self._current_middle: set[int] = set()

    def name_of(self, path: str) -> str:
        """Return the name in the whole model of the block's submodule at `path`."""
        return f"{self._walk.prefix}.{self.index}.{path}"

    def __len__(self) -> int:
        """Number of calibration batches."""
        return len(self._walk.calls)

    def call(self, k: int) -> Call:
        """Return the arguments of batch `k` for this block."""
        return self._walk.calls[k][self.index].to(self._walk.device)

    def token_mask(self, k: int) -> torch.Tensor | None:
        """Return bool [batch, tokens], False at padding, or None where nothing is padded."""
        mask = self._walk.token_masks[k]
        return None if mask is None else mask.to(self._walk.device)

    def dense_in(self, k: int) -> torch.Tensor:
        """Return the dense stream at this block's input, [batch, tokens, width]; gone after any `put_dense…(k)`."""
        return self._walk.dense[k].to(self._walk.device)

    def current_in(self, k: int) -> torch.Tensor:
        """Return the current stream at this block's input, [batch, tokens, width]; gone after any `put_current…(k)`."""
        return self._walk.current[k].to(self._walk.device)

    def scratch(self) -> ActivationStore:
        """Return an empty store that shares the walk's memory budget; to be cleared by whoever asked for it."""
        return self._walk.scratch()

    def put_dense(self, k: int, out: torch.Tensor) -> None:
        """State the dense stream at this block's output, if the pass has computed it anyway."""
        self._walk.put(self._walk.dense, k, out, self.index)
        self._dense_done.add(k)

    def put_current(self, k: int, out: torch.Tensor) -> None:
        """State the current stream at this block's output.

        It must come from `to_middle` and `from_middle` of the changed, sealed block, so that a resumed run computes
        the same bits.
        """
        self._walk.put(self._walk.current, k, out, self.index)
        self._current_done.add(k)

    def put_dense_middle(self, k: int, middle: torch.Tensor) -> None:
        """Keep what `to_middle` made of `dense_in(k)` in its place, to go on from there."""
        self._walk.put(self._walk.dense, k, middle, self.index)
        self._dense_middle.add(k)

    def put_current_middle(self, k: int, middle: torch.Tensor) -> None:
        """Keep what `to_middle` makes of `current_in(k)`, to the bit, in its place; all before it must be sealed."""
        self._walk.put(self._walk.current, k, middle, self.index)
        self._current_middle.add(k)

    def dense_middle(self, k: int) -> torch.Tensor:
        """Return what `put_dense_middle(k)` kept."""
        assert k in self._dense_middle
        return self._walk.dense[k].to(self._walk.device)

    def current_middle(self, k: int) -> torch.Tensor:
        """Return what `put_current_middle(k)` kept."""
        assert k in self._current_middle
        return self._walk.current[k].to(self._walk.device)

    def seal(self) -> None:
        """Round the changed weights to their stored dtype; to be called before the changed block's outputs are used."""
        self._walk.round_to_storage(self.module, self.index, {f"{path}.weight" for path in self.grids})

    def to_middle(self, module: nn.Module, hidden: torch.Tensor, k: int) -> torch.Tensor:
        """Return the residual stream between attention and FFN: what the FFN half of `module` starts from.

        For a `parallel` family there is no such point: the block's input is returned.
        """
        if self.family.residual == "parallel":
            return hidden
        ffn = self.family.ffn
        path = ffn.norm if self.family.residual == "pre" else ffn.readers[0].path
        return input_of(module, path, hidden, self.call(k)).reshape(*hidden.shape[:2], -1)

    def middle_of_heads(self, heads: torch.Tensor, k: int) -> torch.Tensor:
        """Return what `to_middle` makes of `current_in(k)`, to the bit, from the input of attention's output matrix.

        For `pre` families; attention itself does not run again.
        """
        current = self.current_in(k)
        carried = self.module.attention_shortcut(current) if isinstance(self.module, ShortcutBlock) else current
        writer = self.module.get_submodule(self.family.attention.output)
        return torch.as_tensor(carried + writer(heads.to(current.device)).reshape(carried.shape))

    def from_middle(self, module: nn.Module, middle: torch.Tensor, k: int) -> torch.Tensor:
        """Return the block's output [batch, tokens, width] from what `to_middle` returned."""
        family = self.family
        if family.residual == "parallel":
            return run_block(module, middle, self.call(k))
        norm = module.get_submodule(family.ffn.norm)
        if family.residual == "post":
            return torch.as_tensor(norm(run_ffn(module, family, middle) + middle))
        carried = module.ffn_shortcut(middle) if isinstance(module, ShortcutBlock) else middle
        return torch.as_tensor(carried + run_ffn(module, family, norm(middle)))

    def finish(self) -> None:
        """Advance both streams for the batches that the pass did not advance itself."""
        trim_heap()  # the matrices of its fits have left holes that activations do not fill
        for k in range(len(self)):
            if self._walk.streams_dense and k not in self._dense_done:
                go_on = self.from_middle if k in self._dense_middle else self.forward
                self.put_dense(k, go_on(self.dense, self.dense_in(k), k))
            if self._walk.streams_current and k not in self._current_done:
                go_on = self.from_middle if k in self._current_middle else self.forward
                self.put_current(k, go_on(self.module, self.current_in(k), k))

    def forward(self, module: nn.Module, hidden: torch.Tensor, k: int) -> torch.Tensor:
        """Run a whole block, by way of its middle."""
        return self.from_middle(module, self.to_middle(module, hidden, k), k)
