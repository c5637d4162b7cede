"""Graph passes from the graph that torch traced to the graph that ONNX Runtime runs well.

In the order of `tidy`: weights are stored in the layout that their products read; reshapes to heads and back around
GroupQueryAttention are removed; constants are folded; three projections become one; a residual sum and the norm behind
it become one operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript.optimizer import _optimizer as optimizer

from compressor.exporters.onnx import quantized
from compressor.exporters.onnx.grid_values import PARTS
from compressor.exporters.onnx.nodes import SCOPES, by_type, is_weight, new_node, replace
from compressor.exporters.onnx.rewriting import sparing_rules
from compressor.exporters.onnx.weights import joined, shifted, transposed

_HEADS_AND_BACK = [0, 2, 1, 3]


def tidy(model: ir.Model, grids: quantized.Grids | None = None, *, signed: bool = False) -> dict[str, list[str]]:
    """Run all passes on `model`, in place; weights that lie on `grids` are stored as codes.

    Args:
        model: the graph as traced.
        grids: of quantized weights.
        signed: see `quantized.lower`.

    Returns:
        What `quantized.lower` returns: which stored codes hold which modules' weights.

    Raises:
        ModelError: a weight with a grid cannot be stored as codes.
    """
    graph = model.graph
    gemm_to_matmul(graph)
    store_as_read(graph)
    drop_head_reshapes(graph)
    _optimize(model)
    move_query_scale(graph)
    if grids is not None and grids.grids:
        quantized.mark(graph, grids)
    pack_projections(graph)
    fuse_residual_norms(graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    stored = quantized.lower(graph, signed=signed)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    ir.passes.common.RemoveUnusedOpsetsPass()(model)
    name_nodes(graph)
    return stored


def _optimize(model: ir.Model) -> None:
    """Fold small shape arithmetic; the result does not depend on what the weights hold.

    Optimizers join tensors that are equal and remove what adds zero. Trained weights may be equal, or zero, by chance,
    and each must be found under its name afterwards; so meanwhile they have no contents.
    """
    weights = {value: value.const_value for value in model.graph.initializers.values() if is_weight(value)}

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value in weights for value in node.inputs) else None

    for value in weights:
        value.const_value = None
    with sparing_rules():
        optimizer.optimize_ir(model, onnx_shape_inference=False, should_fold=should_fold)
    for value, tensor in weights.items():
        value.const_value = tensor


def gemm_to_matmul(graph: ir.Graph) -> None:
    """Write a linear layer on rank-2 input as MatMul and Add, as all others are: quantizers overlook Gemm."""
    for node in by_type(graph, "Gemm"):
        attributes = {name: a.value for name, a in node.attributes.items()}
        plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
        if not plain or not is_weight(node.inputs[1]):
            continue
        weight = node.inputs[1]
        if attributes.get("transB", 0):
            weight = new_node(node, "Transpose", [weight], perm=[1, 0]).outputs[0]
        product = new_node(node, "MatMul", [node.inputs[0], weight])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        last = product if bias is None else new_node(node, "Add", [product.outputs[0], bias])
        replace(node.outputs[0], last.outputs[0])
        graph.remove(node, safe=True)


def store_as_read(graph: ir.Graph) -> None:
    """Transpose (or, for Gemma's norms, shift) a weight where it is stored, when all its readers want it so.

    An embedding that is also the output head is read both ways; it stays, stored once, and the runtime transposes it.
    """
    for value in list(graph.initializers.values()):
        readers = [use.node for use in value.uses()]
        tensor = value.const_value
        if not isinstance(tensor, ir.LazyTensor) or not readers:
            continue
        kinds = {(n.op_type, tuple(a.as_ints()) if (a := n.attributes.get("perm")) else _addend(n)) for n in readers}
        if len(kinds) != 1:
            continue
        (kind, how) = kinds.pop()
        if kind == "Transpose" and isinstance(how, tuple):
            value.const_value = transposed(tensor, how)
        elif kind == "Add" and isinstance(how, float):
            value.const_value = shifted(tensor, how)
        else:
            continue
        value.shape = value.const_value.shape
        for node in readers:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)


def _addend(node: ir.Node) -> float | None:
    """Return the scalar constant that an Add adds to its other input."""
    if node.op_type != "Add":
        return None
    return next((number for v in node.inputs if (number := _scalar(v)) is not None), None)


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or is_weight(value):
        return None
    tensor = value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
    return float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def drop_head_reshapes(graph: ir.Graph) -> None:
    """Remove the reshapes that split heads for the model and join them again for GroupQueryAttention."""
    for node in by_type(graph, "GroupQueryAttention"):
        for index in range(3):
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, _unsplit(value))
        for use in list(node.outputs[0].uses()):
            for again in list(use.node.outputs[0].uses()):
                if use.node.op_type == again.node.op_type == "Reshape":
                    ir.convenience.replace_all_uses_with(again.node.outputs[0], node.outputs[0])


def _unsplit(value: ir.Value) -> ir.Value:
    """Follow Reshape and two Transposes that cancel back to the joined heads, or to the split ones in between."""
    join = value.producer()
    if join is None or join.op_type != "Reshape":
        return value
    middle = join.inputs[0]
    for _ in range(2):
        node = middle.producer() if middle is not None else None
        if node is None or node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != _HEADS_AND_BACK:
            return value
        middle = node.inputs[0]
    assert middle is not None
    split = middle.producer()
    if split is not None and split.op_type == "Reshape" and split.inputs[0].shape == value.shape:  # type: ignore[union-attr]
        source = split.inputs[0]
        assert source is not None
        return source
    join.replace_input_with(0, middle)
    return value


def move_query_scale(graph: ir.Graph) -> None:
    """Let GroupQueryAttention scale the queries where the model does it itself (OPT): the product commutes."""
    for node in by_type(graph, "GroupQueryAttention"):
        query = node.inputs[0]
        assert query is not None
        product = query.producer()
        if product is None or product.op_type != "Mul" or len(query.uses()) != 1:
            continue
        for source, factor in (product.inputs, reversed(product.inputs)):
            if (number := _scalar(factor)) is not None and source is not None:
                node.attributes["scale"] = ir.AttrFloat32("scale", node.attributes["scale"].as_float() * number)
                node.replace_input_with(0, source)
                graph.remove(product, safe=True)
                break


def pack_projections(graph: ir.Graph) -> None:
    """Join the query, key and value projections of a GroupQueryAttention into one product, bias included.

    Left alone where something stands between projection and attention (Qwen3's norms, a rotation outside the kernel)
    or the projections read different inputs.
    """
    for node in by_type(graph, "GroupQueryAttention"):
        layers = [_linear(value) for value in node.inputs[:3]]
        if any(layer is None for layer in layers):
            continue
        products, biases = zip(*(layer for layer in layers if layer is not None), strict=True)
        if len({id(p.inputs[0]) for p in products}) != 1 or len({b is None for b in biases}) != 1:
            continue
        if len({p.op_type for p in products}) != 1:
            continue
        first, last = products[0], min(products, key=_after(graph))
        if first.op_type == "MatMul":
            weight = _joined_weight(graph, [p.inputs[1] for p in products])
            packed = new_node(last, "MatMul", [first.inputs[0], weight])
        elif quantized.alike(list(products)):
            packed = _joined_product(graph, products, last)
        else:
            continue
        packed.metadata_props[SCOPES] = _sibling_scope(first, "qkv_proj")
        if biases[0] is not None:
            packed = new_node(packed, "Add", [packed.outputs[0], _joined_weight(graph, biases)], after=True)
        for index, value in enumerate((packed.outputs[0], None, None)):
            node.replace_input_with(index, value)


def _after(graph: ir.Graph) -> Any:
    place = {id(node): index for index, node in enumerate(graph)}
    return lambda node: -place[id(node)]


def _linear(value: ir.Value | None) -> tuple[ir.Node, ir.Value | None] | None:
    """Return the MatMul with a weight, and the bias, that make `value` and nothing else."""
    node = value.producer() if value is not None and len(value.uses()) == 1 else None
    bias = None
    if node is not None and node.op_type == "Add":
        biases = [v for v in node.inputs if is_weight(v)]
        others = [v for v in node.inputs if not is_weight(v)]
        if len(biases) != 1 or others[0] is None or len(others[0].uses()) != 1:
            return None
        bias, node = biases[0], others[0].producer()
    if node is None or node.op_type not in ("MatMul", quantized.PRODUCT) or not is_weight(node.inputs[1]):
        return None
    return node, bias


def _joined_product(graph: ir.Graph, products: Sequence[ir.Node], last: ir.Node) -> ir.Node:
    """Return one grid product whose outputs are those of all `products`, one after another."""
    tensors = [
        None if values[0] is None else _joined_weight(graph, values, axis=0)
        for values in zip(*(p.inputs[1:4] for p in products), strict=True)
    ]
    attributes = {name: a.value for name, a in products[0].attributes.items()}
    attributes["N"] = sum(p.attributes["N"].as_int() for p in products)
    return new_node(last, quantized.PRODUCT, [products[0].inputs[0], *tensors], domain="compressor", **attributes)


def _joined_weight(graph: ir.Graph, parts: Sequence[ir.Value | None], axis: int = -1) -> ir.Value:
    values = [part for part in parts if part is not None]
    names = [str(value.name) for value in values]
    module, _, leaf = names[0].rpartition(".")
    name = f"{module.rpartition('.')[0]}.qkv_proj.{leaf}"
    tensor = joined([v.const_value for v in values if v.const_value is not None], name, axis)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    value.metadata_props[PARTS] = ",".join(v.metadata_props.get(PARTS, "") for v in values)
    graph.register_initializer(value)
    return value


def fuse_residual_norms(graph: ir.Graph) -> None:
    """Make SkipSimplifiedLayerNormalization of a residual Add and the SimplifiedLayerNormalization of its sum."""
    for node in by_type(graph, "SimplifiedLayerNormalization"):
        total = node.inputs[0]
        add = total.producer() if total is not None else None
        if add is None or add.op_type != "Add" or add.outputs[0].is_graph_output():
            continue
        a, b = add.inputs
        if a is None or b is None or a.shape is None or a.shape != b.shape or len(a.shape) != 3:
            continue
        if any(v.producer() is None for v in (a, b)):  # an input or a weight may be broadcast
            continue
        fused = new_node(
            add,
            "SkipSimplifiedLayerNormalization",
            [a, b, node.inputs[1]],
            domain="com.microsoft",
            outputs=4,
            epsilon=node.attributes["epsilon"].as_float(),
        )
        fused.metadata_props.update(node.metadata_props)
        replace(node.outputs[0], fused.outputs[0])
        replace(add.outputs[0], fused.outputs[3])
        for old in (node, add):
            graph.remove(old, safe=True)
    graph.opset_imports.setdefault("com.microsoft", 1)


def _module_of(node: ir.Node) -> list[str]:
    """Return the path of the module that `node` was traced in."""
    scopes = [part.strip("' ") for part in node.metadata_props.get(SCOPES, "").strip("[]").split(",")]
    path = scopes[-2].removeprefix("model").strip(".") if len(scopes) > 1 else ""
    return path.split(".") if path and not path.startswith("_") else []


def _sibling_scope(node: ir.Node, name: str) -> str:
    """Return the recorded scopes of a module `name` beside the module of `node`."""
    path = ".".join(["model", *_module_of(node)[:-1], name])
    return f"['{path}', '']"


def name_nodes(graph: ir.Graph) -> None:
    """Name nodes after the module that they come from, and values after their node; drop everything else recorded.

    What torch records names absolute paths and source lines: without it the same model gives the same bytes anywhere.
    """
    taken: dict[str, int] = {}
    ports = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        base = "/".join(["", *_module_of(node), node.op_type])
        taken[base] = taken.get(base, -1) + 1
        node.name = f"{base}_{taken[base]}" if taken[base] else base
        node.metadata_props.clear()
        node.doc_string = None
        for index, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if id(value) in ports:
                continue
            if value.name != "":
                value.name = f"{node.name}/output_{index}"
            value.shape = value.type = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    graph.metadata_props.clear()
    graph.doc_string = None
    graph.name = "main"
