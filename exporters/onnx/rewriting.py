"""onnxscript's rewrite rules, each tried only on nodes whose operator it begins with.

The library tries all of its rules, some fifty, on every node, which took a third of an export. A pattern with one
output node matches no node of another operator, so what is left out changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet


class _Sparing:
    """A rule that does not look at nodes of other operators than `operator`."""

    def __init__(self, rule: RewriteRule, operator: str) -> None:
        self._rule, self._operator = rule, operator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        """Return what replaces the node and those before it; None where the rule does not apply."""
        if node.op_type != self._operator:
            return None
        return self._rule.try_rewrite(model, graph, node, **options)


def _sparing(rule: RewriteRule) -> Any:
    pattern = rule._target_pattern
    identifier = pattern.output_node.op_identifier() if pattern.has_single_output_node else None
    return rule if identifier is None else _Sparing(rule, identifier[1])


@contextmanager
def sparing_rules() -> Iterator[None]:
    """While entered, onnxscript's optimizer tries its own rules only where they may match."""
    rules = RewriteRuleSet([_sparing(rule) for rule in rewriter._DEFAULT_REWRITE_RULES])
    with mock.patch.object(rewriter, "_DEFAULT_REWRITE_RULES", rules):
        yield
