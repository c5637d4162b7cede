"""Whether the tokens that a graph keeps are those that the compressed model keeps in PyTorch: `tokens.overlap`.

The reference has, for every probe and reduction, which of the first tokens are left, and which of the others, or of
these, came near a tie: their score lies so close to the border that rounding alone may carry them across. A graph that
differs there is right as well. Behind the first difference a sample goes its own way, so nothing is compared there.

Where activations are rounded to 8 bits, that rounding is no mistake of the graph, and near ties are far more: such a
graph is judged on the copy that rounds none, as `parity.exact` is, and what it keeps itself is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.kinds import Inputs
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.runner import Runner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.blueprint import in_order
from compressor.model.cost import image_tokens
from compressor.model.folder import ModelFolder, open_model
from compressor.model.token_places import Mask, kept_masks, kept_name
from compressor.verification.cases import restore
from compressor.verification.choices import KEPT, TIED, choices_of
from compressor.verification.exact import without_rounding
from compressor.verification.verdict import Check, failed, not_judged, yes
from compressor.verification.weights import StoredWeights

_MASK = "kept_mask"

Keeps = Callable[[Inputs], Mask]
"""Tells of inputs which of the first tokens are left behind each reduction: [batch, reductions, tokens]."""


def keeps_of(weights: StoredWeights, runner: Runner, threads: int, *, exact: bool = False) -> Keeps | None:
    """Return what tells which tokens an artifact keeps; None for one that keeps all.

    A graph that does not say so is asked on a copy of it in memory.

    Args:
        weights: of the artifact.
        runner: the loaded artifact.
        threads: of the session of the copy.
        exact: whether the copy rounds no activation.

    Raises:
        ModelError: the graph does not name its choices, or the copy cannot be loaded.
    """
    model = open_model(weights.folder)
    if not model.blueprint.reductions or runner.inputs != "pixels":
        return None
    if isinstance(runner, TorchRunner):
        return _torch_keeps(runner)
    graph = without_rounding(weights.model) if exact else _copy(weights.model)
    return _graph_keeps(weights.folder, graph, model, threads)


def _torch_keeps(runner: TorchRunner) -> Keeps:
    def keeps(inputs: Inputs) -> Mask:
        with choices_of(runner.module) as found:
            runner.forward(inputs)
        return found.kept

    return keeps


def _graph_keeps(folder: Path, graph: Any, model: ModelFolder, threads: int) -> Keeps:
    import onnx

    reductions, tokens = in_order(model.blueprint.reductions), image_tokens(model)
    says = any(value.name == _MASK for value in graph.graph.output)
    names = [_MASK] if says else [kept_name(reduction) for reduction in reductions]
    if not says:
        places = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [None, None]) for name in names]
        graph.graph.output.extend(places)
    runner = OnnxRunner(folder, threads, graph=graph.SerializeToString())

    def keeps(inputs: Inputs) -> Mask:
        found = runner.named(inputs, names)
        return found[0] if says else kept_masks(found, [reduction.keep for reduction in reductions], tokens)

    return keeps


def _copy(graph: Any) -> Any:
    copy = type(graph)()
    copy.CopyFrom(graph)
    return copy


@dataclass(frozen=True)
class Overlap:
    """How far what an artifact keeps is what the reference keeps, over probes.

    Attributes:
        both: patch tokens that both keep, over all reductions.
        wanted: those that the reference keeps.
        unexplained: those that differ first in their sample, and came near no tie.
        explained: the others that differ first.
    """

    both: int = 0
    wanted: int = 0
    unexplained: int = 0
    explained: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        """Return the sum of both."""
        return Overlap(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def share(self) -> float:
        """Of the tokens that the reference keeps, the share that the artifact keeps."""
        return self.both / self.wanted if self.wanted else 1.0


def compared(found: Mask, wanted: Mask, tied: Mask) -> Overlap:
    """Compare what is kept, [batch, reductions, tokens] each; `tied` are the tokens that came near a tie."""
    differs = found != wanted
    first = differs.any(-1).cumsum(axis=1) == 1  # [batch, reductions]
    first &= np.diff(differs.any(-1).cumsum(axis=1), axis=1, prepend=0) == 1
    differs &= first[..., None]
    return Overlap(
        int((found & wanted).sum()), int(wanted.sum()), int((differs & ~tied).sum()), int((differs & tied).sum())
    )


def check_overlap(
    weights: StoredWeights,
    runner: Runner,
    recorded: Mapping[str, NDArray[Any]],
    precision: str,
    threads: int,
) -> list[Check]:
    """Check `tokens.overlap`, and `tokens.overlap.exact` where the artifact rounds activations.

    Args:
        weights: of the artifact.
        runner: the loaded artifact.
        recorded: the tensors of its reference.
        precision: of the artifact.
        threads: of the sessions that are opened.
    """
    cases = [name.removesuffix(f".{KEPT}") for name in recorded if name.endswith(f".{KEPT}")]
    if not cases:
        return []
    rounds = precision.startswith("int") and weights.is_onnx
    try:
        shipped = _measured(keeps_of(weights, runner, threads), cases, recorded)
        exact = _measured(keeps_of(weights, runner, threads, exact=True), cases, recorded) if rounds else shipped
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        return [failed("tokens.overlap", error)]
    if rounds:
        why = "its activations are rounded to 8 bits, which carries tokens near a tie across"
        return [not_judged("tokens.overlap", why, shipped.share), _judged("tokens.overlap.exact", exact)]
    if precision != "float32":
        why = f"in {precision} more tokens lie near a tie than the reference tells"
        return [not_judged("tokens.overlap", why, shipped.share)]
    return [_judged("tokens.overlap", shipped)]


def _measured(keeps: Keeps | None, cases: list[str], recorded: Mapping[str, NDArray[Any]]) -> Overlap:
    assert keeps is not None, "the reference has what a model without reductions does not"
    total = Overlap()
    for case in cases:
        prefix = f"{case}.input."
        given = {name.removeprefix(prefix): v for name, v in recorded.items() if name.startswith(prefix)}
        found = keeps(restore(given))
        kept, tied = (
            np.unpackbits(recorded[f"{case}.{name}"], axis=-1, count=found.shape[-1]).astype(np.bool_)
            for name in (KEPT, TIED)
        )
        total += compared(found, kept, tied)
    return total


def _judged(name: str, overlap: Overlap) -> Check:
    reason = f"{overlap.unexplained} tokens are kept, or go, otherwise than in PyTorch, and came near no tie"
    return yes(name, not overlap.unexplained, reason, value=overlap.share)
