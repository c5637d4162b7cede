"""INT8 with calibrated input ranges: 8-bit weights per output, inputs rounded to unsigned bytes on a fixed grid.

A first pass over the calibration data finds the range of every channel and the factors that even them out, a second one
the histogram of the smoothed input, from which `method` chooses the range. Outputs of products stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.passes.base import Options
from compressor.passes.quantize._int8.linears import Int8, Int8Options
from compressor.passes.surgery.linears import embedding_name, head_name

if TYPE_CHECKING:
    import torch

    from compressor.passes.quantize._int8.ranges import ChannelRanges
    from compressor.passes.quantize._int8.smooth import Smoothing
    from compressor.storage.grids import Activations, GridSpec
    from compressor.walk import Walk


class Int8StaticOptions(Int8Options):
    """Options of `int8-static`."""

    method: Literal["minmax", "percentile", "entropy", "mse"] = Field(
        "mse", description="How the range of an input follows from its histogram."
    )
    percentile: float | None = Field(
        None,
        gt=50.0,
        le=100.0,
        description="method: percentile only: share of values, in percent, below the upper end; 99.99 if absent.",
    )

    @model_validator(mode="after")
    def _with_effect(self) -> Self:
        if self.percentile is not None and self.method != "percentile":
            raise ValueError(f"percentile is for method: percentile, and method is {self.method}; leave one out")
        return self


class Int8Static(Int8):
    """See the module."""

    name: str = "int8-static"
    summary: ClassVar[str] = "8-bit weights and inputs, input ranges calibrated and stored."
    Options: ClassVar[type[Options]] = Int8StaticOptions
    activations: ClassVar[Activations] = "static"

    def __init__(self, options: Int8StaticOptions) -> None:
        """Take validated options."""
        super().__init__(options, calibration="must")

    def input_spec(
        self, spec: GridSpec, ranges: ChannelRanges | None, smoothing: Smoothing, inputs: Callable[[int], torch.Tensor]
    ) -> GridSpec:
        """Return the spec with the step and the zero point of the input's codes."""
        assert ranges is not None, "the method is calibrated"
        low, high = ranges.tensor_range(smoothing.factors)
        return self._calibrated(spec, float(low.min()), float(high.max()), map(inputs, range(len(ranges.low))))

    def change_tail(self, walk: Walk) -> None:
        """Round the head; the range of its input is that of the last norm's output."""
        from compressor.model.modules import base_of
        from compressor.passes.surgery.observe import unpadded

        super().change_tail(walk)
        source = walk.source
        name = embedding_name(source) if source.blueprint.tied else head_name(source)
        if source.task != "text-generation" or name not in walk.grids:
            return
        norm = base_of(walk.model).get_submodule(source.family.final_norm) if source.family.final_norm else None

        def inputs(k: int) -> torch.Tensor:
            hidden = walk.current[k].to(walk.device)
            return unpadded(hidden if norm is None else norm(hidden), walk.token_masks[k])

        count = len(walk.calls)
        ends = [(float(seen.min()), float(seen.max())) for seen in map(inputs, range(count))]
        low, high = min(0.0, *(e[0] for e in ends)), max(0.0, *(e[1] for e in ends))
        grid = walk.grids[name]
        walk.grids[name] = replace(grid, spec=self._calibrated(grid.spec, low, high, map(inputs, range(count))))

    def _calibrated(self, spec: GridSpec, low: float, high: float, inputs: Iterable[torch.Tensor]) -> GridSpec:
        from compressor.passes.quantize._int8.ranges import PERCENTILE, Histogram, range_of, scale_and_zero

        histogram = Histogram(low, high)
        for part in inputs:
            histogram.add(part)
        scale, zero = scale_and_zero(*range_of(histogram, self.options.method, self.options.percentile or PERCENTILE))
        return replace(spec, input_scale=scale, input_zero_point=zero)


METHOD = Int8Static
