"""A decoder of two graphs, the embedding of tokens and the rest, as the one graph that they are together.

What is checked of graphs is checked of that one. The runtime loads the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor._lazy import lazy
from compressor.errors import ModelError

onnx = lazy("onnx")

_EMBEDS = "inputs_embeds"


def with_embedding(decoder: Any, embedding: Any, folder: Path) -> Any:
    """Return the graph from tokens to logits.

    Args:
        decoder: takes `inputs_embeds`.
        embedding: gives them.
        folder: of their external data.

    Raises:
        ModelError: they do not fit together, or store other values under the same name.
    """
    takes = [value for value in decoder.graph.input if value.name == _EMBEDS]
    if not takes or [value.name for value in embedding.graph.output] != [_EMBEDS]:
        raise ModelError(f"the graph of the embedding and the decoder's do not both name {_EMBEDS}")
    if _dims(takes[0]) != _dims(embedding.graph.output[0]):
        raise ModelError(f"{_EMBEDS} is given as {_dims(embedding.graph.output[0])} and taken as {_dims(takes[0])}")
    joined = type(decoder)()
    joined.CopyFrom(decoder)
    graph = joined.graph
    inputs = [*embedding.graph.input, *(value for value in graph.input if value.name != _EMBEDS)]
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in embedding.graph.initializer:
        if tensor.name not in stored:
            graph.initializer.append(tensor)
        elif _bytes(tensor, folder) != _bytes(stored[tensor.name], folder):
            raise ModelError(f"the graph of the embedding and the decoder's store other values as {tensor.name}")
    nodes = [*embedding.graph.node, *graph.node]
    for field, values in ((graph.input, inputs), (graph.node, nodes)):
        kept = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(kept)
    known = {opset.domain for opset in joined.opset_import}
    joined.opset_import.extend(opset for opset in embedding.opset_import if opset.domain not in known)
    return joined


def _dims(value: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


def _bytes(tensor: Any, folder: Path) -> bytes:
    array: Any = onnx.numpy_helper.to_array(tensor, base_dir=str(folder))
    return bytes(array.tobytes())
