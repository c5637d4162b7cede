"""Initializers that are read from the checkpoint while the file is being written.

A model is traced with parameters that take no memory. Its weights are then attached as lazy tensors: what a graph pass
does to a weight (transpose, join, add) is composed, and happens when the tensor's turn to be written has come. So the
export needs the memory of its largest tensor, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]


class Weights(Protocol):
    """Where the tensors of a model come from: a `compressor.storage.tensors.Checkpoint`, or `ModuleWeights`."""

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a tensor of that name."""

    def tensor(self, name: str) -> Tensor:
        """Return one tensor."""

    def close(self) -> None:
        """Close what is open; tensors can still be read afterwards."""


class ModuleWeights:
    """The parameters of a module that is in memory; one that has several names is known by the first alone."""

    def __init__(self, module: nn.Module) -> None:
        """Take the module."""
        self._parameters: dict[str, Tensor] = dict(module.named_parameters())

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a tensor of that name."""
        return name in self._parameters

    def tensor(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._parameters[name].detach()

    def close(self) -> None:
        """Do nothing: the tensors belong to the module."""


@contextmanager
def weightless(model: nn.Module, weights: Weights, dtype: torch.dtype) -> Iterator[dict[str, str]]:
    """Give a model parameters of `dtype` that have shapes but no contents for the time of a trace.

    Memory that is reserved and never touched costs nothing; unlike meta tensors it is on the CPU, as buffers are. An
    output head that the weights do not have shares the input embedding.

    Args:
        model: any module; its parameters are put back afterwards.
        weights: tells whether the head has a weight of its own.
        dtype: of the floating-point parameters.

    Yields:
        The head's name and the embedding's, where they share their weight.
    """
    before = [(m, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
    empty = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=dtype if p.is_floating_point() else p.dtype), False)
        for _, _, p in before
    }
    aliases = _tied_head(model, weights)
    for head, embedding in aliases.items():
        empty[id(model.get_parameter(head))] = empty[id(model.get_parameter(embedding))]
    try:
        for module, name, parameter in before:
            module._parameters[name] = empty[id(parameter)]
        yield aliases
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter


def _tied_head(model: nn.Module, weights: Weights) -> dict[str, str]:
    """Return the weight name of an output head that `weights` does not have, and of the embedding that serves as it."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        return {}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    name = names[id(head)]
    return {} if name in weights else {name: names[id(embedding)]}


def attach(graph: ir.Graph, weights: Weights, prefix: str, aliases: Mapping[str, str]) -> None:
    """Let the graph's initializers read their contents from `weights`, under the names those have there.

    Initializers without such a name (buffers, constants) keep what the trace found in them.

    Args:
        graph: a traced graph.
        weights: the tensors.
        prefix: what the tracing wrapper put before the names.
        aliases: names that stand for others (`weightless`).
    """
    for traced, value in list(graph.initializers.items()):
        name = traced.removeprefix(prefix)
        name = aliases.get(name, name)
        if name in weights and value.const_value is not None:
            value.const_value = _read(weights, name, value.const_value)
        graph.initializers.pop(traced)
        value.name = name
        graph.initializers[name] = value


def _read(weights: Weights, name: str, like: ir.TensorProtocol) -> ir.LazyTensor:
    dtype = like.dtype
    shape = sizes(like.shape)

    def make() -> Array:
        array = np.asarray(weights.tensor(name).to(_TORCH_DTYPES[dtype]).numpy())
        assert array.shape == shape, f"{name} is {array.shape}, the graph wants {shape}"
        return array

    return lazy(make, dtype, shape, name)


def sizes(shape: Any) -> tuple[int, ...]:
    """Return a static shape as plain numbers."""
    return tuple(int(size) for size in shape)


def lazy(make: Callable[[], Array], dtype: ir.DataType, shape: Sequence[int], name: str) -> ir.LazyTensor:
    """Return a tensor that calls `make` each time it is read, and keeps nothing."""
    return ir.LazyTensor(lambda: ir.Tensor(np.ascontiguousarray(make())), dtype, ir.Shape(shape), name=name)


def transposed(tensor: ir.TensorProtocol, order: Sequence[int]) -> ir.LazyTensor:
    """Return `tensor` with its axes in `order`, once it is read."""
    shape = [sizes(tensor.shape)[axis] for axis in order]
    # torch copies a transposed matrix in blocks, four times as fast as numpy.
    return lazy(
        lambda: torch.from_numpy(tensor.numpy()).permute(*order).contiguous().numpy(),
        tensor.dtype,
        shape,
        tensor.name or "",
    )


def joined(tensors: Sequence[ir.TensorProtocol], name: str, axis: int = -1) -> ir.LazyTensor:
    """Return tensors joined along an axis, the last by default, once they are read."""
    shape = list(sizes(tensors[0].shape))
    shape[axis] = sum(sizes(t.shape)[axis] for t in tensors)
    return lazy(lambda: np.concatenate([t.numpy() for t in tensors], axis=axis), tensors[0].dtype, shape, name)


def shifted(tensor: ir.TensorProtocol, amount: float) -> ir.LazyTensor:
    """Return `tensor + amount`, once it is read."""

    def make() -> Array:
        array: Array = tensor.numpy()
        moved: Array = array + array.dtype.type(amount)
        return moved

    return lazy(make, tensor.dtype, sizes(tensor.shape), tensor.name or "")


_TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
}
