"""Two blocks of each kind are traced; the others are copies of their nodes.

A trace takes time and megabytes of records for every block. So a model is traced with the first and the last block of
each kind alone, and one whose weights have other shapes; if their nodes agree, the others get copies of these. If not,
the model is traced again with all its blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from compressor.architectures import family_of
from compressor.exporters.onnx.copying import PortNames, TracedBlock
from compressor.machine.memory import trim_heap
from compressor.model.modules import base_of, base_prefix
from compressor.walk.calls import Recorder, replaced

_DOMAIN = "compressor"
_ENTER, _LEAVE = "EnterBlock", "LeaveBlock"
_PLAIN = (type(None), bool, int, float, str, tuple)
_WIDTHS = frozenset({"layer_idx", "in_features", "out_features", "intermediate_size"})
"""Attributes of modules that say where a block stands and what shapes its weights have."""
_OF_ALL_MODULES = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Block:
    """One block of a model, as a call of the model shows it.

    Attributes:
        path: its name in the model.
        module: the block.
        kind: equal for two blocks if only their index and the shapes of their weights differ.
        shapes: of its weights.
        keeps_width: whether the hidden states that leave it are as wide as those that enter it.
    """

    path: str
    module: nn.Module
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    keeps_width: bool

    @property
    def prefix(self) -> str:
        """What the names of its weights begin with in a trace: the wrappers call the model `model`."""
        return f"model.{self.path}."


def blocks_of(model: nn.Module, run: Callable[[], Any]) -> list[Block]:
    """Return the blocks of a model of transformers, in order; `run` calls the model once, which computes nothing."""
    calls: list[tuple[list[Any], Any, Any]] = []  # keeps the tensors alive: two alive ones never have the same id

    def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        calls.append((leaves, structure, output))

    holder, name = _holder(model)
    modules = getattr(holder, name)
    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            run()
    finally:
        for handle in handles:
            handle.remove()
    path = f"{base_prefix(model)}{family_of(model.config).blocks}"  # type: ignore[arg-type]
    return [
        _block(f"{path}.{index}", module, *call)
        for index, (module, call) in enumerate(zip(modules, calls, strict=True))
    ]


def _holder(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that has the list of blocks, and the list's name there."""
    parent, _, name = family_of(model.config).blocks.rpartition(".")
    return base_of(model).get_submodule(parent), name  # type: ignore[arg-type]


def _block(path: str, module: nn.Module, leaves: list[Any], structure: Any, output: Tensor) -> Block:
    modules = [(name, type(part), _attributes(part)) for name, part in module.named_modules()]
    parameters = [(name, p.dtype) for name, p in module.named_parameters()]
    buffers = [(name, hashlib.sha256(b.numpy().tobytes()).digest()) for name, b in module.named_buffers()]
    hidden, *others = leaves
    given = [_identity(leaf) for leaf in others]
    kind = repr((modules, parameters, buffers, hidden.shape, output.shape, given, structure))
    shapes = tuple(tuple(parameter.shape) for parameter in module.parameters())
    return Block(path, module, kind, shapes, hidden.shape == output.shape)


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    return [(k, _identity(v)) for k, v in sorted(vars(module).items()) if k not in _OF_ALL_MODULES | _WIDTHS]


def _identity(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else (type(value), id(value))


def repeats(blocks: Sequence[Block]) -> list[int]:
    """Return for each block the index of the block that is traced in its place; its own if it is traced itself."""
    kinds: dict[str, list[int]] = {}
    for index, block in enumerate(blocks):
        kinds.setdefault(block.kind, []).append(index)
    found = list(range(len(blocks)))
    for members in kinds.values():
        first, last = members[0], members[-1]
        other = next((i for i in members if blocks[i].shapes != blocks[first].shapes), first)
        for index in members:
            if index not in (first, other, last) and blocks[index].keeps_width:
                found[index] = other if blocks[index].shapes == blocks[other].shapes else first
    return found


def trace_repeating(
    model: nn.Module, blocks: list[Block], trace: Callable[[list[int]], ir.Model], ports: Callable[[int], PortNames]
) -> ir.Model:
    """Return the graph of a model, most of its blocks being copies of one that was traced.

    Args:
        model: of transformers.
        blocks: its blocks.
        trace: traces the model, called `model` by the wrapper around it, and names the ports; is given the indices of
            the blocks that are there.
        ports: names what each block reads from and adds to the inputs and outputs of the graph.

    Raises:
        ModelError: torch cannot trace the model.
    """
    for likes in (repeats(blocks), list(range(len(blocks)))):
        with _only(model, blocks, likes):
            graph = trace(sorted(set(likes)))
        if _paste(graph.graph, blocks, likes, ports):
            break
    graph.graph.opset_imports.pop(_DOMAIN, None)
    trim_heap()
    return graph


@contextmanager
def _only(model: nn.Module, blocks: list[Block], likes: list[int]) -> Iterator[None]:
    """While entered, blocks that become copies do nothing, and the traced ones stand between marks."""
    holder, name = _holder(model)
    # One placeholder per block: torch loses the names of all others where a list holds a module twice.
    modules = [
        block.module if like == index else Recorder(lambda hidden, call: None)
        for index, (block, like) in enumerate(zip(blocks, likes, strict=True))
    ]
    with ExitStack() as stack:
        for index in set(likes):
            module = blocks[index].module
            stack.enter_context(mock.patch.object(module, "forward", _marked(module.forward, index)))
        stack.enter_context(replaced(holder, name, modules))
        yield


def _marked(forward: Callable[..., Tensor], index: int) -> Callable[..., Tensor]:
    def marked(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _mark(_LEAVE, forward(_mark(_ENTER, hidden, index), *args, **kwargs), index)

    return marked


def _mark(name: str, hidden: Tensor, index: int) -> Tensor:
    made: Tensor = torch.onnx.ops.symbolic(
        f"{_DOMAIN}::{name}", [hidden], {"index": index}, dtype=hidden.dtype, shape=hidden.shape, version=1
    )
    return made


def _paste(graph: ir.Graph, blocks: list[Block], likes: list[int], ports: Callable[[int], PortNames]) -> bool:
    """Add copies of the traced blocks' nodes for the others, unless blocks of one kind have different nodes.

    Returns:
        Whether it is done; the graph is of no use otherwise.
    """
    marks = {(n.op_type, n.attributes["index"].as_int()): n for n in graph if n.domain == _DOMAIN}
    traced = {
        index: TracedBlock(marks[_ENTER, index], marks[_LEAVE, index], blocks[index].prefix, ports(index))
        for index in sorted(set(likes))
    }
    end = traced[0].leave
    for index, like in enumerate(likes):
        block = blocks[index]
        if like == index:
            end = traced[index].leave
            continue
        same = [known for i, known in traced.items() if blocks[i].kind == block.kind]
        if len({known.results for known in same}) > 1:
            return False
        tensors = {**dict(block.module.named_parameters()), **dict(block.module.named_buffers())}
        shaped = [traced[like]] if block.shapes == blocks[like].shapes else same
        traced[like].copy(end, block.prefix, tensors, ports(index), shaped)
    for known in traced.values():
        known.unmark()
    return True
