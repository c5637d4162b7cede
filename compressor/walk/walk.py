"""The block walk: calibration runs through one block at a time, which is observed, changed, saved and released.

Two streams flow side by side. The *dense* stream goes through the blocks as they came; the *current* stream goes
through the blocks as they were changed, so block i is calibrated on the outputs of the changed blocks 0…i-1 and can
correct their error. Memory holds one block twice and the activations of one depth, however deep the model is.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.data.kinds import Batches
from compressor.errors import ModelError
from compressor.machine.memory import trim_heap
from compressor.model.blocks import fold_scales
from compressor.model.blueprint import Blueprint
from compressor.model.folder import ModelFolder
from compressor.model.modules import base_of, base_prefix
from compressor.model.reduced import Tracks
from compressor.model.skeleton import built_block, install_gates, resize_block
from compressor.model.weights import materialise, release
from compressor.storage.grids import Grid
from compressor.storage.tensors import Entry, park
from compressor.walk.activations import ActivationStore, Budget
from compressor.walk.calls import Call, Injector, Recorder, Stop, replaced
from compressor.walk.change import Change
from compressor.walk.checkpoint import ShardWriter
from compressor.walk.streams import Point, Stream, Streams, depth_of, is_finite
from compressor.walk.view import BlockView

OUTSIDE = "outside"
PARKED = "parked"
SPILLED = "activations"


def block_key(index: int) -> str:
    """Return the name of block `index`'s shard."""
    return f"block-{index:04d}"


class ChangesBlocks(Protocol):
    """What every pass does."""

    def change_block(self, block: BlockView) -> Change:
        """Change `block.module` in place and say what changed."""


@runtime_checkable
class ChangesEnds(Protocol):
    """What a pass does that also changes what stands before the first block and behind the last."""

    def change_stem(self, walk: Walk) -> None:
        """Change the modules before the first block, in place on `walk.model`."""

    def change_tail(self, walk: Walk) -> None:
        """Change the modules after the last block, in place on `walk.model`."""


class Walk:
    """A model, streamed block by block over calibration batches.

    Attributes:
        source: the model as it came.
        model: its skeleton. Blocks have weights only while walked, stem and tail only before and after that.
        streams: the activations and the arguments of the blocks.
        every: the walk uses every n-th batch of the calibration data.
        grids: by module name: grids on which a pass has put weights outside the blocks (embedding, head).
    """

    def __init__(
        self,
        source: ModelFolder,
        batches: Batches,
        *,
        work: Path,
        cache_bytes: int,
        device: torch.device | str = "cpu",
        advance: Callable[[str], None] = lambda note: None,
    ) -> None:
        """Load the stem and tail of `source`; activations beyond `cache_bytes` spill to a folder in `work`."""
        if not gc.get_freeze_count():
            gc.freeze()  # the collector then skips the libraries' objects, so collecting per block is cheap
        self.source, self.batches, self.work = source, batches, work
        self.device = torch.device(device)
        self.advance = advance
        self.model: PreTrainedModel = source.skeleton()
        self.prefix = f"{base_prefix(self.model)}{source.family.blocks}"
        self.count = len(source.shapes.layers)
        self._budget = Budget(cache_bytes)
        self.streams = Streams(self.device, self.scratch)
        self.every = 1
        self.grids: dict[str, Grid] = {}
        materialise(self.model, source.weights, skip=[self.prefix], device=self.device)
        self._buffers_to_device()

    def scratch(self, *, on_disk: bool = False) -> ActivationStore:
        """Return an empty store that shares the walk's memory budget, or takes none of it; its user clears it."""
        return ActivationStore(self.work / SPILLED, Budget(0) if on_disk else self._budget)

    def _buffers_to_device(self) -> None:
        for module in self.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(self.device))

    @property
    def blocks(self) -> nn.ModuleList:
        """The module list of the blocks."""
        found = base_of(self.model).get_submodule(self.source.family.blocks)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def dense(self) -> Stream:
        """The dense stream."""
        return self.streams.dense

    @property
    def current(self) -> Stream:
        """The current stream."""
        return self.streams.current

    @property
    def calls(self) -> list[list[Call]]:
        """Per batch and block, the arguments of the block."""
        return self.streams.calls

    @property
    def token_masks(self) -> list[torch.Tensor | None]:
        """Per batch bool [batch, tokens], False at padding; None where nothing is padded."""
        return self.streams.token_masks

    def start(self, stream: Stream, every: int | None = None) -> None:
        """Run the stem over every n-th batch (None: `self.every`); store first inputs and all calls of blocks."""
        every = every or self.every
        self.streams.calls, self.streams.token_masks, self.streams.ends = [], [], {}
        for k, inputs in enumerate(itertools.islice(self.batches, 0, None, every)):
            hidden, calls = self._run_stem(inputs)
            if not is_finite(hidden):
                raise ModelError("the embeddings give NaN or infinite activations", hint="The checkpoint is damaged.")
            stream.put(k, hidden, depth_of(0, Point.INPUT))
            self.calls.append(calls)
            mask = inputs.get("attention_mask")
            self.token_masks.append(None if mask is None else torch.as_tensor(mask).bool())

    def _run_stem(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, list[Call]]:
        calls: list[Call] = []
        first: list[torch.Tensor] = []

        def note(hidden: torch.Tensor, call: Call) -> None:
            first.append(hidden)
            calls.append(call)
            if len(calls) == self.count:
                raise Stop

        with self.replaced([Recorder(note) for _ in range(self.count)]):
            try:
                self.forward(inputs)
            except Stop:
                return first[0], calls
        raise ModelError("the model does not call its blocks one by one: the family's table does not fit it")

    def forward(self, inputs: dict[str, Any]) -> Any:
        """Run the model, with whatever blocks it now has, on numpy inputs.

        Image features [batch, features, width], where there are any, take the places of the embeddings of tokens that
        `image_places`, bool [batch, tokens], names.
        """
        tensors = {name: torch.as_tensor(array).to(self.device) for name, array in inputs.items()}
        if (features := tensors.pop("image_features", None)) is not None:
            embeds = self.model.get_input_embeddings()(tensors.pop("input_ids"))
            places = tensors.pop("image_places")[..., None].expand_as(embeds)
            tensors["inputs_embeds"] = embeds.masked_scatter(places, features.to(embeds))
        extra = {"use_cache": False} if self.source.task == "text-generation" else {}
        return self.model(**tensors, **extra)

    def replaced(self, blocks: list[nn.Module]) -> AbstractContextManager[None]:
        """Return a context in which the model has other blocks."""
        parent, _, name = self.source.family.blocks.rpartition(".")
        return replaced(base_of(self.model).get_submodule(parent), name, blocks)

    def park(self, name: str, tensor: torch.Tensor) -> Entry:
        """Write one finding of a survey to disk, return its entry: one per block in memory would grow with depth."""
        return park(self.work / PARKED, name, tensor)

    @contextmanager
    def only_blocks(self) -> Iterator[None]:
        """While entered, the weights of stem and tail lie on disk: an embedding can be as large as many blocks."""
        outside = [p for name, p in self.model.named_parameters() if not name.startswith(f"{self.prefix}.")]
        stored = self.scratch(on_disk=True)
        for k, parameter in enumerate(outside):
            stored[k] = parameter.data
            parameter.data = parameter.data.new_empty(0)
        try:
            yield
            for k, parameter in enumerate(outside):
                parameter.data = stored[k].to(self.device)
        finally:
            stored.clear()

    def open_block(self, index: int) -> nn.Module:
        """Read block `index` into float32, its layer scales folded into its writers, and return it."""
        block = self.blocks[index]
        materialise(block, self.source.weights, prefix=f"{self.prefix}.{index}.", device=self.device)
        fold_scales(block, self.source.family)
        return block

    def close_block(self, index: int) -> None:
        """Release block `index`, and the pages of the checkpoint that it was read from."""
        release(self.blocks[index])
        self.source.weights.close()
        gc.collect()  # a forward pass that a hook has ended leaves reference cycles that hold activations
        trim_heap()

    def _view(self, index: int, module: nn.Module, dense: nn.Module) -> BlockView:
        return BlockView(self.streams, self.source, index, f"{self.prefix}.{index}.", module, dense)

    @torch.no_grad()
    def survey(self, note: str = "survey", *, keep: bool = False, every: int | None = None) -> Iterator[BlockView]:
        """Walk the dense stream only and yield every block, unchanged, for whole-model statistics.

        `keep` leaves the last block's outputs in `self.dense`; `every` = n walks every n-th batch instead of
        `self.every`.
        """
        self.streams.flows_dense, self.streams.flows_current = True, False
        self.start(self.dense, every)
        with self.only_blocks():
            for index in range(self.count):
                block = self.open_block(index)
                view = self._view(index, block, block)
                yield view
                if keep or index + 1 < self.count:  # the last block's output is read only with `keep`
                    view.finish()
                self.close_block(index)
                self.advance(f"{note} {index + 1} of {self.count}")
        if not keep:
            self.dense.clear()

    @torch.no_grad()
    def rewrite(self, changer: ChangesBlocks, planned: Blueprint, shards: ShardWriter, *, dense: bool) -> list[Change]:
        """Walk both streams; let `changer` change stem, blocks and tail; save each to `shards` as soon as it is done.

        Blocks that `shards` already holds are run, not changed: a killed run goes on where it stopped.

        Args:
            changer: what changes the blocks; its `change_stem` and `change_tail` are called if it has them.
            planned: the blueprint that the changes lead to.
            shards: the checkpoint of the pass.
            dense: whether `changer` must be shown the dense stream.

        Raises:
            ModelError: a block gives NaN or infinite activations.
        """
        streams, ends = self.streams, changer if isinstance(changer, ChangesEnds) else None
        streams.flows_dense, streams.flows_current = dense, True
        if dense:
            self.start(streams.dense)
        if ends is not None:
            ends.change_stem(self)
        self.start(streams.current)
        with self.only_blocks():
            changes = [self._rewrite_block(changer, planned, shards, index, dense) for index in range(self.count)]
        if ends is not None:
            ends.change_tail(self)
        shards.save(OUTSIDE, {}, self._outside(planned.tied), grids=self.grids)
        streams.dense.clear()
        streams.current.clear()
        return changes

    def _rewrite_block(
        self, changer: ChangesBlocks, planned: Blueprint, shards: ShardWriter, index: int, dense: bool
    ) -> Change:
        block = self.open_block(index)
        view = self._view(index, block, copy.deepcopy(block) if dense else block)
        key, prefix = block_key(index), f"{self.prefix}.{index}."
        if key in shards.done:
            change = Change.from_json(shards.note(key))
            release(block)
            resize_block(block, self.source.family, change.layer, planned.shapes.head_dim)
            built = self._built(block, index, planned, change)
            names = [prefix + name for name, _ in built.named_parameters()]
            materialise(built, shards.read(key, names), prefix=prefix, device=self.device)
            view.install(built)
        else:
            change = changer.change_block(view)
            view.install(self._built(view.module, index, planned, change))
            view.seal()
            parameters = dict(view.module.named_parameters(prefix=prefix.rstrip(".")))
            grids = {prefix + path: grid for path, grid in view.grids.items()}
            shards.save(key, change.to_json(), parameters, grids=grids)
        view.finish()
        self.blocks[index] = view.module
        self.close_block(index)
        self.advance(f"block {index + 1} of {self.count}")
        return change

    def _built(self, block: nn.Module, index: int, planned: Blueprint, change: Change) -> nn.Module:
        """Return a changed block with what is new of its computation: shortcuts, a token reduction, gates."""
        source = self.source.blueprint
        gates = {f"{self.prefix}.{index}.{path}": gate for path, gate in change.gates.items()}
        install_gates(block, replace(source, gates=gates), f"{self.prefix}.{index}.")
        if planned.shapes.shortcuts == source.shapes.shortcuts and planned.reductions == source.reductions:
            return block
        return built_block(block, self.source.family, planned, index, Tracks())

    def _outside(self, tied: bool) -> dict[str, torch.Tensor]:
        """Return the parameters outside the blocks; a tied head is left out, as its weight is the embedding's."""
        heads = self.source.family.heads if tied else ()
        return {
            name: parameter
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if not name.startswith(f"{self.prefix}.") and name.removesuffix(".weight") not in heads
        }

    @torch.no_grad()
    def outputs(self) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """Run the unchanged model block by block and yield its output for every batch (logits or hidden states).

        Where tokens are selected behind the last block by what blocks have seen, the whole model runs.
        """
        if self.source.blueprint.output_reduction is not None:
            materialise(self.model, self.source.weights, device=self.device)
            for inputs in self.batches:
                yield self.forward(inputs)["last_hidden_state"].float().cpu().numpy()
            return
        for _ in self.survey("evaluate", keep=True):
            continue
        for k, inputs in enumerate(self.batches):
            yield self.run_tail(inputs, self.dense[k].to(self.device), k).float().cpu().numpy()
        self.dense.clear()

    def run_tail(self, inputs: dict[str, Any], hidden: torch.Tensor, k: int | None = None) -> torch.Tensor:
        """Return the model's output for batch `k`, whose last block gives `hidden` [batch, tokens, width].

        Of an encoder that pools its hidden states itself, that is one embedding for each sample. Tokens of texts that
        have become fewer stand in their old places again; a model without such a reduction needs no `k`.
        """
        if k in self.streams.ends:
            hidden = self.streams.ends[k].restored(hidden)
        with self.replaced([Injector(hidden) for _ in range(self.count)]):
            out = self.forward(inputs)
        names = ("logits", *self.source.family.pooled, "last_hidden_state")
        return torch.as_tensor(next(out[name] for name in names if out.get(name) is not None))
