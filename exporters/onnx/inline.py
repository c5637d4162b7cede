"""Writes a graph and its weights as one file while holding one weight at a time.

The protobuf library holds graph, message and bytes at once: three times the weights. The wire format only asks for the
length of a message in front of it (protobuf.dev, "Encoding"), and lengths are known before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_ir as ir

_BYTES = 2  # wire type of a message or a string of bytes: its length, then itself


def write_inline(model: ir.Model, path: Path, seen: Callable[[int], None]) -> None:
    """Write `model` to `path`, weights inside; `seen` is told the bytes of each weight once it is written.

    Raises:
        OSError: the file cannot be written.
        CompressorError: what reading a weight raised.
    """
    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    tensors: list[Any] = [value.const_value for value in values]
    with _described(values, tensors):
        proto = ir.to_proto(model)
    heads = [_head(tensor) for tensor in proto.graph.initializer]
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    starts = [
        _start(onnx.GraphProto, "initializer", len(head) + len(raw) + tensor.nbytes) + head + raw
        for head, tensor in zip(heads, tensors, strict=True)
        for raw in [_start(onnx.TensorProto, "raw_data", tensor.nbytes)]
    ]
    size = len(graph) + sum(len(start) + tensor.nbytes for start, tensor in zip(starts, tensors, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(_start(onnx.ModelProto, "graph", size))
        file.write(graph)
        for start, tensor in zip(starts, tensors, strict=True):
            file.write(start)
            _write(file, tensor)
            seen(tensor.nbytes)


@contextmanager
def _described(values: list[ir.Value], tensors: list[Any]) -> Iterator[None]:
    """While entered, the values have name, type and shape of their tensors, but no data."""
    try:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = ir.ExternalTensor(
                "none", None, None, tensor.dtype, shape=tensor.shape, name=tensor.name, doc_string=tensor.doc_string
            )
        yield
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _head(tensor: onnx.TensorProto) -> bytes:
    """Return a described weight's message, which its bytes complete."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    head: bytes = tensor.SerializeToString(deterministic=True)
    return head


def _start(message: Any, field: str, length: int) -> bytes:
    """Return what stands before the `length` bytes of a field's value."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _BYTES) + _varint(length)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _write(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    data = tensor.tobytes()
    assert len(data) == tensor.nbytes, f"{tensor.name} has {len(data)} bytes, not {tensor.nbytes}"
    file.write(data)
