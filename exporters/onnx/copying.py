"""The nodes of one block in a graph, and copies of them for other blocks."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from torch import Tensor

from compressor.exporters.onnx.nodes import SCOPES, replace

PortNames = tuple[list[str], list[str]]
"""Names of the inputs and the outputs of the graph that belong to one block."""


class TracedBlock:
    """The nodes of a block: all between two marks that read what enters it, its own inputs or its weights.

    Whatever else they read is shared by all blocks.

    Attributes:
        leave: the mark behind the block.
        digests: for every value of the block a hash of how it is computed.
        results: the digests of the values that leave the block.
    """

    def __init__(self, enter: ir.Node, leave: ir.Node, prefix: str, ports: PortNames) -> None:
        """Find the nodes.

        Args:
            enter: the mark that the hidden states pass before the block.
            leave: the one that they pass behind it.
            prefix: what the names of the block's weights begin with.
            ports: the block's own inputs and outputs.
        """
        graph = leave.graph
        assert graph is not None
        self._enter, self.leave, self._prefix, self._graph = enter, leave, prefix, graph
        self._inputs = [enter.outputs[0], *(value for value in graph.inputs if value.name in ports[0])]
        self._outputs = [_given(leave.inputs[0]), *(value for value in graph.outputs if value.name in ports[1])]
        self._weights = {
            v: name.removeprefix(prefix) for name, v in graph.initializers.items() if name.startswith(prefix)
        }
        self._nodes: list[ir.Node] = []
        self.digests = {value: f"input {number}" for number, value in enumerate(self._inputs)} | self._weights
        outside: dict[ir.Value, str] = {}
        for node in itertools.takewhile(lambda n: n is not leave, itertools.dropwhile(lambda n: n is not enter, graph)):
            if node is not enter and any(value in self.digests for value in node.inputs):
                self._nodes.append(node)
                found = _digest(node, self.digests, outside)
                self.digests |= {value: f"{found} {number}" for number, value in enumerate(node.outputs)}
        self.results = tuple(self.digests.get(value) for value in self._outputs)

    def copy(
        self, end: ir.Node, prefix: str, tensors: Mapping[str, Tensor], ports: PortNames, shaped: list[TracedBlock]
    ) -> None:
        """Add a copy of the nodes for another block, behind what the mark `end` reads.

        Args:
            end: the mark behind the last block before; stands behind the copy afterwards.
            prefix: what the names of the other block's weights begin with.
            tensors: its weights and buffers, by the rest of their names.
            ports: names for inputs and outputs of its own.
            shaped: blocks alike; a value has a known shape where it has the same in all of these.
        """
        hidden, *inputs = self._inputs
        copies = {hidden: _given(end.inputs[0])}
        copies |= {like: self._input(like, name) for like, name in zip(inputs, ports[0], strict=True)}
        copies |= {like: self._weight(f"{prefix}{name}", tensors[name]) for like, name in self._weights.items()}
        shapes = [{digest: value.shape for value, digest in block.digests.items()} for block in shaped]
        for node in self._nodes:
            read = [None if value is None else copies.get(value, value) for value in node.inputs]
            scopes = node.metadata_props.get(SCOPES, "").replace(self._prefix[:-1], prefix[:-1])
            made = ir.Node(node.domain, node.op_type, read, node.attributes.values(), num_outputs=len(node.outputs),
                           version=node.version, metadata_props={SCOPES: scopes})  # fmt: skip
            self._graph.insert_before(end, made)
            for value, like in zip(made.outputs, node.outputs, strict=True):
                copies[like], value.type = value, like.type
                same = all(known[self.digests[like]] == like.shape for known in shapes)
                value.shape = like.shape if same else None
        out, *outputs = self._outputs
        end.replace_input_with(0, copies[out])
        for like, name in zip(outputs, ports[1], strict=True):
            copies[like].name = name
            self._graph.outputs.append(copies[like])

    def _input(self, like: ir.Value, name: str) -> ir.Value:
        made = ir.Value(name=name, shape=like.shape, type=like.type)
        self._graph.inputs.append(made)
        return made

    def _weight(self, name: str, weight: Tensor) -> ir.Value:
        tensor = ir.tensor(weight.detach())
        made = ir.Value(name=name, shape=ir.Shape(weight.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(made)
        return made

    def unmark(self) -> None:
        """Take the marks before and behind the block away."""
        for mark in (self._enter, self.leave):
            replace(mark.outputs[0], _given(mark.inputs[0]))
            self._graph.remove(mark, safe=True)


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _digest(node: ir.Node, inside: Mapping[ir.Value, str], outside: dict[ir.Value, str]) -> str:
    """Return a hash of a node's operation and inputs; `outside` caches the hashes of values outside of the block."""
    if (size := _dynamic_size(node)) is not None:
        return size
    read = []
    for value in node.inputs:
        if value is not None and value not in inside and value not in outside:
            maker = value.producer()
            found = f"outside {value.name}" if maker is None else _digest(maker, inside, outside)
            outside[value] = f"{found} {value.index()}"
        read.append(None if value is None else inside.get(value) or outside[value])
    attributes = [(a.name, _content(a.value)) for a in sorted(node.attributes.values(), key=lambda a: a.name)]
    return hashlib.sha256(repr((node.domain, node.op_type, read, attributes)).encode()).hexdigest()


def _dynamic_size(node: ir.Node) -> str | None:
    """Return the name of the dynamic dimension whose size a node gives: it is the same whichever value has it."""
    source = node.inputs[0] if node.op_type == "Shape" else None
    if source is None or source.shape is None or "start" not in node.attributes:
        return None
    size = source.shape[node.attributes["start"].as_int()]
    return None if isinstance(size, int) else f"size {size}"


def _content(value: Any) -> Any:
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, ir.TensorProtocol) else value
