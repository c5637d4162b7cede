"""What stands for quantized weights in a graph: initializers that are made when they are written, each once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from compressor.exporters.onnx.weights import Array, lazy

PARTS = "modules"
"""Under this name an initializer's metadata lists the modules whose weights it holds, one after another."""


def initializer(
    graph: ir.Graph, name: str, make: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, ...], parts: str
) -> ir.Value:
    """Return the initializer of that name, with what `make` returns of the modules `parts` if there is none yet."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = lazy(make, dtype, shape, name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
    value.metadata_props[PARTS] = parts
    graph.register_initializer(value)
    return value


def derived(
    graph: ir.Graph, like: ir.Value, leaf: str, make: Callable[[Array], Array], dtype: ir.DataType, shape: Any
) -> ir.Value:
    """Return an initializer that is `make` of another one's contents."""
    source = like.const_value
    assert source is not None
    name = f"{str(like.name).rpartition('.')[0]}.{leaf}"
    return initializer(graph, name, lambda: make(source.numpy()), dtype, tuple(shape), like.metadata_props[PARTS])


def constant(graph: ir.Graph, name: str, numbers: Any) -> ir.Value:
    """Return the initializer of that name, made of `numbers` if there is none yet."""
    if name in graph.initializers:
        return graph.initializers[name]
    array = np.asarray(numbers)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def present(value: ir.Value | None) -> ir.Value:
    """Return a value that is known to be there."""
    assert value is not None
    return value
