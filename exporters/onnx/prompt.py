"""Image tokens that become fewer inside a decoder, in its graph: one call, with lengths that are known at run time.

How many tokens are left depends on the call, and torch traces no length that comes out of values. So the trace gets one
stand-in input for each reduction, from whose shape it takes the length; afterwards, the places of the tokens that stay
take the stand-in's place.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, nn

from compressor.exporters.onnx.nodes import by_type, replace
from compressor.model.blueprint import Reduction
from compressor.model.llm_block import LlmBlock
from compressor.model.reduced import Tracks

_KEPT = "Kept"
_DOMAIN = "compressor"
STAND_IN = "kept."
"""What the names of the stand-in inputs begin with."""
CHECK = "image_tokens_become_fewer_padding_is_not_supported"
"""Name of the node that fails where a call that holds image tokens is padded."""


class TracedPrompt:
    """A call of a decoder while its graph is traced (`compressor.model.llm_prompt.Prompt`)."""

    def __init__(self, ids: Tensor, mask: Tensor, stand_ins: list[Tensor]) -> None:
        """Take the inputs of the call, and for each reduction an int64 [tokens left] that stands in for it."""
        self._mask, self._stand_ins, self._made = mask, stand_ins, 0
        self._total = _size(mask)
        self._past = self._total - _size(ids)

    def holds(self, reduction: Reduction) -> bool:
        """Return True: the graph tells at run time."""
        return True

    def first(self, reduction: Reduction) -> Tensor:
        """Return the place of the first image token in the call, [1]."""
        return reduction.start - self._past

    def highest(self, reduction: Reduction, scores: Tensor, going: int | Tensor) -> Tensor:
        """Return the places of all but `going` tokens, of highest score [batch, tokens], by rising place.

        None goes in a call that does not hold all image tokens and one token behind.
        """
        number, self._made = self._made, self._made + 1
        held = (self._past <= reduction.start) & (self._total > reduction.start + reduction.count)
        drops = torch.where(held, going, 0)
        if number == 0:
            drops = torch.minimum(drops, self._unpadded(held))
        count = _size(scores) - drops
        shape = [self._mask.shape[0], self._stand_ins[number].shape[0]]
        best = _top(scores.to(torch.float32), count, shape, largest=True)[1]
        places = _top(best, count, shape, largest=False)[0]
        return torch.onnx.ops.symbolic(
            f"{_DOMAIN}::{_KEPT}", [places], {"index": number}, dtype=torch.int64, shape=shape, version=1
        )

    def _unpadded(self, held: Tensor) -> Tensor:
        """Return the sum of the mask, [1]; fails at run time where the call is `held` and some of it is 0."""
        batch, total = self._mask.shape[:2]
        rows = _size(self._mask, 0)
        tokens = torch.where(held, self._mask.sum().reshape(1) // rows, self._total)
        # Other dimensions than it has, and two that vary: what has one alone is made a constant, and fails never.
        turned = torch.onnx.ops.symbolic(
            "::Reshape", [self._mask, torch.cat([tokens, rows])], {}, dtype=torch.int64, shape=[total, batch]
        )
        return turned.sum().reshape(1)


def _size(values: Tensor, axis: int = 1) -> Tensor:
    """Return a size of values [batch, tokens, ...], [1], as the graph finds it: of axis 1, their tokens, by default."""
    return torch.onnx.ops.symbolic("::Shape", [values], {"start": axis, "end": axis + 1}, dtype=torch.int64, shape=[1])


def _top(values: Tensor, count: Tensor, shape: list[int], *, largest: bool) -> tuple[Tensor, ...]:
    """Return the `count` largest or smallest values in order, and their places, `shape` each."""
    found = torch.onnx.ops.symbolic_multi_out(
        "::TopK",
        [values, count],
        {"axis": -1, "largest": int(largest), "sorted": 1},
        dtypes=(values.dtype, torch.int64),
        shapes=(shape, shape),
    )
    return tuple(found)


def tracks_of(model: nn.Module) -> Tracks | None:
    """Return what the blocks of a model share in which image tokens become fewer; None for any other."""
    return next((module.tracks for module in model.modules() if isinstance(module, LlmBlock)), None)


def reductions_in(model: nn.Module) -> int:
    """Return how often image tokens become fewer inside a language model."""
    return sum(isinstance(module, LlmBlock) and module.reduction is not None for module in model.modules())


def put_in(graph: ir.Graph) -> None:
    """Let the places of the tokens that stay take the places of the stand-in inputs, in place."""
    marks = {node.attributes["index"].as_int(): node for node in graph if node.op_type == _KEPT}
    for value in [value for value in graph.inputs if str(value.name).startswith(STAND_IN)]:
        mark = marks[int(str(value.name).removeprefix(STAND_IN))]
        places = mark.inputs[0]
        assert places is not None
        for use in list(value.uses()):  # all ask for its size
            use.node.replace_input_with(0, places)
            use.node.attributes.update({"start": ir.AttrInt64("start", 1), "end": ir.AttrInt64("end", 2)})
        replace(mark.outputs[0], places)
        graph.remove(mark, safe=True)
        graph.inputs.remove(value)
    graph.sort()


def name_check(graph: ir.Graph) -> None:
    """Call the node that fails on padding by a name that says so: runtimes name the node that fails."""
    for node in by_type(graph, "Reshape"):  # no other takes an input as it is
        if (source := node.inputs[0]) is not None and source.is_graph_input():
            node.name = CHECK
