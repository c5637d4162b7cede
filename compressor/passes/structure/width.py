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

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from compressor._lazy import lazy
from compressor.passes.base import PassFamily
from compressor.passes.numerics.allocation import WidthBudget, angular, greedy, uniform, width_budget
from compressor.passes.structure._width.options import WidthOptions
from compressor.passes.surgery.channels import check_covered

if TYPE_CHECKING:
    import torch

    from compressor.architectures import Shapes
    from compressor.model.folder import ModelFolder
    from compressor.storage.grids import GridSpec
    from compressor.walk.walk import BlockView, Change, Walk
else:
    torch = lazy("torch")


class Width:
    """The width mechanism, one run over one model."""

    name: ClassVar[str] = "width"
    family: ClassVar[PassFamily] = "structure"
    summary: ClassVar[str] = "Remove FFN channels (OBS, CFSP, magnitude, …) and refit the rest by least squares."
    Options: ClassVar[type[BaseModel]] = WidthOptions
    calibrated: ClassVar[bool] = True

    def __init__(self, options: WidthOptions) -> None:
        """Take validated options."""
        self.options = options
        self.needs_dense = options.reconstruct
        # The Fisher trace walks forward and backward on its own.
        curves = 4 if options.weighting == "fisher" else 2
        self.foreseen = options.allocation == "uniform"
        self.walks = {"uniform": 1, "cfsp": 2, "global": curves}[options.allocation]
        self._widths: list[int] = []

    def budget(self, shapes: Shapes) -> WidthBudget:
        """Return how many channels stay in all blocks together.

        Raises:
            ModelError: sparsity and rounding do not fit the model.
        """
        before = [layer.intermediate_size for layer in shapes.layers]
        o = self.options
        return width_budget(before, o.sparsity, multiple=o.round_to, least=o.least, alike=o.allocation == "uniform")

    def plan(self, source: ModelFolder) -> Shapes:
        """Return the shapes after the pass; only their sum is exact where the allocation depends on data.

        Raises:
            ModelError: sparsity and rounding do not fit the model, or its FFN is not covered.
        """
        check_covered(self.name, source.family)
        return source.shapes.with_widths(uniform(self.budget(source.shapes)))

    def plan_grids(self, source: ModelFolder) -> dict[str, GridSpec]:
        """Put no weights on grids."""
        return {}

    def survey(self, walk: Walk, planned: Shapes) -> dict[str, torch.Tensor]:
        """Return the widths of all blocks, and `every`: which share of the calibration batches is needed."""
        from compressor.passes.structure._width import surveys
        from compressor.walk.sampling import stride

        o, budget = self.options, self.budget(walk.source.shapes)
        every = stride(walk, o.tokens_per_channel)
        found = {"every": torch.tensor(every)}
        if o.allocation == "uniform":
            return {**found, "widths": torch.tensor(uniform(budget))}
        if o.allocation == "cfsp":
            distances = surveys.angular_distances(walk, every=every)
            widths = angular(budget, distances, o.temperature)
            return {**found, "widths": torch.tensor(widths), "distances": torch.tensor(distances)}
        curves, weights = surveys.loss_curves(walk, o, budget.floor, every=every)
        weighted = [(curve * weight).tolist() for curve, weight in zip(curves, weights, strict=True)]
        return {**found, "widths": torch.tensor(greedy(budget, weighted)), "sensitivity": torch.tensor(weights)}

    def begin(self, source: ModelFolder, planned: Shapes, findings: Mapping[str, torch.Tensor]) -> None:
        """Receive the widths."""
        self._widths = [int(width) for width in findings["widths"]]

    def change_stem(self, walk: Walk) -> None:
        """Leave the stem as it is."""

    def change_tail(self, walk: Walk) -> None:
        """Leave the tail as it is."""

    def config_updates(self, source: ModelFolder) -> dict[str, Any]:
        """Change nothing beside the shapes."""
        return {}

    def change_block(self, block: BlockView) -> Change:
        """Narrow the FFN of one block."""
        from compressor.passes.structure._width import narrowing
        from compressor.walk.walk import Change

        width = self._widths[block.index]
        figures = narrowing.narrow(block, width, self.options)
        return Change(replace(block.layer, intermediate_size=width), figures)


METHOD = Width
