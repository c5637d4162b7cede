"""A decoder as two graphs: the embedding of tokens, and all the rest, which takes embeddings in the place of tokens.

Features of images take the places of some embeddings between the two. The embedding is cut out of the finished graph,
so whatever has been done to its table (codes, a head that shares it) is in both.
"""

from __future__ import annotations

import onnx_ir as ir

from compressor.errors import ModelError
from compressor.exporters.onnx.weights import sizes

EMBEDDINGS = "inputs_embeds"
_TOKENS = "input_ids"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_PLACES = 2
"""Dimensions that tokens and their embeddings share: batch and sequence."""


def embedding_apart(model: ir.Model, width: int, dtype: ir.DataType) -> ir.Model:
    """Cut the embedding of tokens out of a decoder's graph, in place; return it as a graph of its own.

    The rest takes `inputs_embeds [batch, sequence, width]` in the place of `input_ids`.

    Args:
        model: a finished decoder.
        width: of an embedding.
        dtype: of embeddings.

    Raises:
        ModelError: tokens are used for more than their embeddings.
    """
    graph = model.graph
    tokens = next(value for value in graph.inputs if value.name == _TOKENS)
    shapes = [use.node for use in tokens.uses() if _asks(use.node)]
    nodes, hidden = _embedding(graph, tokens)
    assert tokens.shape is not None
    shape, kind = ir.Shape([*tokens.shape, width]), ir.TensorType(dtype)
    embeddings = ir.Value(name=EMBEDDINGS, shape=shape, type=kind)
    for node in shapes:
        start, end = (node.attributes.get(key) for key in ("start", "end"))
        if end is None or start is None or not 0 <= start.as_int() < end.as_int() <= _PLACES:
            raise ModelError("the graph asks for the whole shape of its tokens")
        node.replace_input_with(0, embeddings)
    ir.convenience.replace_all_uses_with(hidden, embeddings)
    graph.inputs[graph.inputs.index(tokens)] = embeddings
    graph.remove(nodes)
    hidden.name, hidden.shape, hidden.type = EMBEDDINGS, shape, kind
    return _graph_of(nodes, tokens, hidden, model)


def _embedding(graph: ir.Graph, tokens: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """Return the first nodes that make of tokens what all others read instead of them, and that value.

    Raises:
        ModelError: there is no such value.
    """
    nodes: list[ir.Node] = []
    known = {tokens}
    for node in graph:
        given = [value for value in node.inputs if value is not None and not _stored(value)]
        if not given or _asks(node) or not all(value in known for value in given):
            continue
        nodes.append(node)
        known.update(node.outputs)
        read = [value for value in known if any(use.node not in nodes for use in value.uses() if not _asks(use.node))]
        if len(read) == 1 and not _gives_codes(node):
            return nodes, read[0]
    raise ModelError("tokens are used for more than their embeddings")


def _gives_codes(node: ir.Node) -> bool:
    """Tell whether a node looks codes up, which others make numbers of."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    number = table.const_value if table is not None else None
    return number is not None and number.dtype not in _FLOATS


def _asks(node: ir.Node) -> bool:
    return node.op_type == "Shape"


def _stored(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _graph_of(nodes: list[ir.Node], tokens: ir.Value, hidden: ir.Value, like: ir.Model) -> ir.Model:
    """Return a graph from tokens to embeddings; numbers that other nodes read too are in both graphs."""
    stored: dict[str, ir.Value] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is None or not _stored(value):
                continue
            name = str(value.name)
            if name not in stored:
                number = value.const_value
                if number is None:  # of a Constant
                    producer = value.producer()
                    assert producer is not None
                    number = producer.attributes["value"].as_tensor()
                stored[name] = ir.Value(
                    name=name, shape=value.shape, type=value.type or ir.TensorType(number.dtype), const_value=number
                )
                stored[name].shape = ir.Shape(sizes(number.shape))
            node.replace_input_with(index, stored[name])
    graph = ir.Graph(
        [tokens],
        [hidden],
        nodes=nodes,
        initializers=list(stored.values()),
        opset_imports=dict(like.graph.opset_imports),
        name=EMBEDDINGS,
    )
    made = ir.Model(graph, ir_version=like.ir_version, producer_name=like.producer_name)
    made.metadata_props.update(like.metadata_props)
    return made
