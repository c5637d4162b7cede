"""The stored tensors of an artifact, read one at a time: a graph's initializers or a safetensors folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor._lazy import lazy
from compressor.architectures import EMBEDDINGS
from compressor.errors import ModelError
from compressor.storage.artifact import onnx_model
from compressor.storage.tensors import Checkpoint, stored_entries
from compressor.verification.embedded import with_embedding
from compressor.verification.verdict import Check, failed, yes

onnx = lazy("onnx")

FLOATS = {"float32", "float16", "bfloat16", "float64"}
_QUANTIZED_OPS = {"MatMulNBits", "MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul", "DequantizeLinear"}


@dataclass(frozen=True)
class External:
    """Where the data of one initializer lies: location as stated, byte offset, byte length, bytes that it needs."""

    name: str
    location: str
    offset: int
    length: int | None
    needed: int


class StoredWeights:
    """What is stored, by name; `model` is the graph without external data, None for safetensors."""

    def __init__(self, folder: Path, model: Any = None, entries: Checkpoint | None = None) -> None:
        """Take a parsed graph or the entries of a safetensors folder; `open_weights` makes one."""
        self.folder = folder
        self.model = model
        self._entries = entries
        self._initializers = {t.name: t for t in initializers(model.graph)} if model is not None else {}

    @property
    def apart(self) -> bool:
        """Whether a graph of its own embeds tokens; what is here are both graphs as one."""
        return self.is_onnx and getattr(onnx_model(self.folder), "name", None) in EMBEDDINGS

    @property
    def is_onnx(self) -> bool:
        """Whether the weights belong to a graph."""
        return self.model is not None

    def table(self) -> dict[str, list[Any]]:
        """Return name -> [dtype, *shape]."""
        if self._entries is not None:
            entries = {name: self._entries.entry(name) for name in self._entries.names()}
            return {name: [e.dtype, *e.shape] for name, e in sorted(entries.items())}
        return {name: [_dtype(t), *t.dims] for name, t in sorted(self._initializers.items())}

    def arrays(self) -> Iterator[tuple[str, Any]]:
        """Yield name and float32 or float64 array of every floating-point tensor, one in memory at a time."""
        for name, (dtype, *_) in self.table().items():
            if dtype in FLOATS:
                yield name, self.array(name)

    def array(self, name: str) -> Any:
        """Return a floating-point tensor as float32.

        Raises:
            ModelError: it cannot be read.
        """
        if self._entries is not None:
            return self._entries.tensor(name).float().numpy()
        try:
            return onnx.numpy_helper.to_array(self._initializers[name], base_dir=str(self.folder)).astype(
                np.float32, copy=False
            )
        except Exception as error:  # onnx raises ValueError, ValidationError or OSError for bad external data
            raise ModelError(f"tensor {name} cannot be read: {str(error).splitlines()[0]}") from error

    def stored(self, name: str) -> Any:
        """Return a tensor of a safetensors folder as it is stored.

        Raises:
            ModelError: there is no such tensor, or its file is damaged.
        """
        assert self._entries is not None
        return self._entries.tensor(name).numpy()

    def initializer(self, name: str) -> Any:
        """Return an initializer of the graph as it is stored; None if it has none of that name."""
        tensor = self._initializers.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor, base_dir=str(self.folder))

    def external(self) -> list[External]:
        """Return where external data lies, in the order of the graph."""
        found = []
        for tensor in self._initializers.values():
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                facts = {entry.key: entry.value for entry in tensor.external_data}
                length = int(facts["length"]) if "length" in facts else None
                location, offset = facts.get("location", ""), int(facts.get("offset", 0))
                found.append(External(tensor.name, location, offset, length, _needed_bytes(tensor)))
        return found

    def disagreements(self, shapes: Any, parameters: int, vocabulary: int) -> list[str]:
        """Return in what the graph differs from the shapes and the parameter count that config.json states."""
        inputs = {i.name: _dims(i) for i in self.model.graph.input}
        problems = []
        for index, layer in enumerate(shapes.layers):
            dims = inputs.get(f"past_key_values.{index}.key")
            if dims is not None and dims[1] != layer.num_key_value_heads:
                problems.append(
                    f"layer {index} has {dims[1]} key-value heads in the graph, {layer.num_key_value_heads} stated"
                )
        sides = self._sides()
        for width, count in Counter(layer.intermediate_size for layer in shapes.layers).items():
            # Readers may be packed (width times two), the writer never is: one matrix per layer has this side.
            if sides[width] < count:
                problems.append(
                    f"FFN width {width} is stated for {count} layers, the graph has {sides[width]} such matrices"
                )
        out = next((_dims(o) for o in self.model.graph.output if o.name == "logits"), None)
        if vocabulary and out is not None and len(out) == 3 and isinstance(out[-1], int) and out[-1] != vocabulary:
            problems.append(f"the graph has {out[-1]} logits, config.json a vocabulary of {vocabulary}")
        stored = self._parameters()
        if not self.quantized and stored < parameters * 0.99:
            problems.append(f"the graph holds {stored} weights, {parameters} parameters are stated")
        return problems

    @property
    def quantized(self) -> bool:
        """Whether weights are quantized: in a graph by its operators, in safetensors by integers with a scale."""
        if self._entries is not None:
            return any(name.endswith("weight_scale") for name in self._entries.names())
        return any(node.op_type in _QUANTIZED_OPS for node in self.model.graph.node)

    def _sides(self) -> Counter[int]:
        """Count the matrices that have a side of each length, quantized ones by their stated K and N."""
        sides: Counter[int] = Counter()
        for tensor in self._initializers.values():
            if len(tensor.dims) == 2 and _dtype(tensor) in FLOATS | {"int8", "uint8"}:
                sides.update(set(tensor.dims))
        for node in self.model.graph.node:
            if node.op_type == "MatMulNBits":
                sides.update({a.i for a in node.attribute if a.name in ("K", "N")})
        return sides

    def _parameters(self) -> int:
        return sum(int(np.prod(t.dims)) for t in self._initializers.values() if _dtype(t) in FLOATS)


def open_weights(folder: Path) -> StoredWeights:
    """Open an artifact's weights: headers only.

    Raises:
        ModelError: there is no model, or its file is damaged.
    """
    path = onnx_model(folder)
    if path is None:
        return StoredWeights(folder, entries=Checkpoint(stored_entries(folder)))
    try:
        model = onnx.load(str(path), load_external_data=False)
        if (name := EMBEDDINGS.get(path.name)) is not None:
            path = folder / name
            model = with_embedding(model, onnx.load(str(path), load_external_data=False), folder)
        return StoredWeights(folder, model=model)
    except ModelError:
        raise
    except Exception as error:  # protobuf's DecodeError and OSError share no base class
        raise ModelError(f"{path.name} cannot be parsed: {str(error).splitlines()[0]}") from error


def initializers(graph: Any) -> Iterator[Any]:
    """Yield the initializers of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            graphs: Iterable[Any] = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for inner in graphs:
                yield from initializers(inner)


def check_external(folder: Path, weights: StoredWeights, inside: Any) -> list[Check]:
    """Check that external data lies in the folder, is there, and is as long as the graph says.

    Args:
        folder: the artifact.
        weights: its graph.
        inside: `(folder, name) -> bool`, whether a relative path stays in the folder.
    """
    external = weights.external()
    outside = sorted({e.location for e in external if not inside(folder, e.location)})
    checks = [yes("files.external.inside", not outside, f"the graph reads {', '.join(outside)}, outside the folder")]
    if outside:
        return checks
    missing = sorted({e.location for e in external if not (folder / e.location).is_file()})
    checks.append(
        yes("files.external.present", not missing, f"external data is missing: {', '.join(missing)}", damaged=True)
    )
    for part in external:
        size = (folder / part.location).stat().st_size if part.location not in missing else None
        if size is not None and part.offset + max(part.length or 0, part.needed) > size:
            reason = (
                f"{part.location} has {size} bytes, {part.name} ends at byte {part.offset + part.needed}: truncated"
            )
            return [*checks, yes("files.external.length", False, reason, damaged=True)]
        if part.length is not None and part.length != part.needed:
            reason = f"{part.name} is stored in {part.length} bytes, its shape needs {part.needed}"
            return [*checks, yes("files.external.length", False, reason)]
    return [*checks, yes("files.external.length", True, "")]


def check_values(weights: StoredWeights) -> list[Check]:
    """Check that all weights are finite and that no matrix is all zeros."""
    broken, empty = [], []
    try:
        for name, array in weights.arrays():
            if not np.isfinite(array).all():
                broken.append(name)
            if array.ndim >= 2 and min(array.shape[-2:]) > 1 and not array.any():
                empty.append(name)
    except ModelError as error:
        return [failed("weights.readable", error)]
    return [
        yes("weights.finite", not broken, f"NaN or infinity in {', '.join(broken[:4])} ({len(broken)} tensors)"),
        yes("weights.nonzero", not empty, f"all zeros: {', '.join(empty[:4])} ({len(empty)} tensors)"),
    ]


def _dtype(tensor: Any) -> str:
    return _DTYPE_NAMES.get(onnx.TensorProto.DataType.Name(tensor.data_type), "other")


_DTYPE_NAMES = {
    "FLOAT": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "DOUBLE": "float64",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT4": "int4",
    "UINT4": "uint4",
    "BOOL": "bool",
}


def _needed_bytes(tensor: Any) -> int:
    bits = (
        4
        if _dtype(tensor) in ("int4", "uint4")
        else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )
    return (int(np.prod(tensor.dims)) * bits + 7) // 8


def _dims(value: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
