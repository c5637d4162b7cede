"""FFN width: removes whole channels, and lets what is left make up for them by least squares.

    1. allocation   how many channels each block keeps: all alike, by angular distance (CFSP), or greedily over all
                    blocks by loss × sensitivity; the sum is exact and known beforehand
    2. importance   which ones: Optimal Brain Surgeon elimination (`elimination.py`) or a score (`importance.py`)
    3. refit        W' = (C_S + λP)(H_SS + λI)⁻¹ towards  y = dense block output − current residual stream,
                    so that each block also corrects the error that reached it (`moments.py`);
                    attention's output matrix alike, and readers see the best linear guess of the dense stream
    4. refine       readers' rows to the block's output by least squares (`refine.py`), then the writer once more

It changes FFN readers (rows), the FFN writer (columns, values), and with `refit` the values, not the shapes, of
attention matrices. It cannot cut fused FFN matrices (Phi-3) yet. No gradient step is taken on any weight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from compressor._lazy import lazy
from compressor.passes.base import Findings, Needs, PassFamily, Target
from compressor.passes.numerics.allocation import WidthBudget, angular, greedy, uniform, width_budget
from compressor.passes.structure._width.options import WidthOptions
from compressor.passes.surgery.channels import check_covered

if TYPE_CHECKING:
    import torch

    from compressor.architectures import StackShapes
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change, Walk
else:
    torch = lazy("torch")


class Width:
    """The width mechanism, one run over one model."""

    family: ClassVar[PassFamily] = "structure"
    summary: ClassVar[str] = "Remove FFN channels (OBS, CFSP, magnitude, …) and refit the rest by least squares."
    Options: ClassVar[type[BaseModel]] = WidthOptions
    name: str = "width"

    def __init__(self, options: WidthOptions, *, name: str = "width") -> None:
        """Take validated options; `name` is that of the preset, where there is one."""
        self.options, self.name = options, name
        # The Fisher trace walks backward behind the loss curves.
        curves = 3 if options.weighting == "fisher" else 2
        self.needs = Needs(
            calibration="must",
            dense=options.reconstruct,
            walks={"uniform": 1, "cfsp": 2, "global": curves}[options.allocation],
            tokens_per_channel=options.tokens_per_channel,
            foreseen=options.allocation == "uniform",
        )
        self._widths: list[int] = []

    def budget(self, shapes: StackShapes) -> WidthBudget:
        """Return how many channels stay in all blocks together.

        Raises:
            ModelError: sparsity and rounding do not fit the model.
        """
        before = [layer.intermediate_size for layer in shapes.layers]
        o = self.options
        return width_budget(before, o.sparsity, multiple=o.round_to, least=o.least, alike=o.allocation == "uniform")

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint after the pass; only the sum of widths is exact where the allocation depends on data.

        Raises:
            ModelError: sparsity and rounding do not fit the model, or its FFN is not covered.
        """
        check_covered(self.name, source.family)
        return source.blueprint.with_shapes(source.shapes.with_widths(uniform(self.budget(source.shapes))))

    def survey(self, walk: Walk, planned: Blueprint) -> Findings:
        """Return the widths of all blocks, and which share of the calibration batches is needed."""
        from compressor.passes.structure._width import surveys
        from compressor.walk.sampling import stride

        o, budget = self.options, self.budget(walk.source.shapes)
        every = stride(walk, o.tokens_per_channel)
        if o.allocation == "uniform":
            return Findings({"widths": torch.tensor(uniform(budget))}, every)
        if o.allocation == "cfsp":
            distances = surveys.angular_distances(walk, every=every)
            widths = angular(budget, distances, o.temperature)
            return Findings({"widths": torch.tensor(widths), "distances": torch.tensor(distances)}, every)
        curves, weights = surveys.loss_curves(walk, o, budget.floor, every=every)
        weighted = [(curve * weight).tolist() for curve, weight in zip(curves, weights, strict=True)]
        widths = greedy(budget, weighted)
        return Findings({"widths": torch.tensor(widths), "sensitivity": torch.tensor(weights)}, every)

    def begin(self, planned: Blueprint, findings: Findings) -> None:
        """Receive the widths."""
        self._widths = [int(width) for width in findings.tensors["widths"]]

    def change_block(self, block: BlockView) -> Change:
        """Narrow the FFN of one block."""
        from compressor.passes.structure._width import narrowing
        from compressor.walk import Change

        width = self._widths[block.index]
        figures = narrowing.narrow(block, width, self.options)
        return Change(replace(block.layer, intermediate_size=width), figures)


METHOD = Width
