"""Small tools for graph passes: find nodes, make one beside another, put one value in another's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch records the modules that a node was traced in, outermost first."""


def is_weight(value: ir.Value | None) -> bool:
    """Tell whether a value is a weight, which is read while the file is written."""
    return value is not None and isinstance(value.const_value, ir.LazyTensor)


def by_type(graph: ir.Graph, *types: str) -> Iterator[ir.Node]:
    """Yield the nodes of some types; the graph may change meanwhile."""
    return (node for node in list(graph) if node.op_type in types)


def new_node(
    like: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    domain: str = "",
    outputs: int = 1,
    after: bool = False,
    **attrs: Any,
) -> ir.Node:
    """Return a node before (or right after) `like`, and with its origin."""
    node = ir.node(op_type, inputs, attrs or None, domain=domain, num_outputs=outputs)
    node.metadata_props.update(like.metadata_props)
    graph = like.graph
    assert graph is not None
    (graph.insert_after if after else graph.insert_before)(like, node)
    return node


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let `new` take the place of `old`, as a graph output too."""
    new.shape, new.type = new.shape or old.shape, new.type or old.type
    if old.is_graph_output():
        new.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
