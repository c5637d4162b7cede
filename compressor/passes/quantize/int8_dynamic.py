"""INT8 with input ranges found at run time: 8-bit weights per output, inputs rounded per tensor at every call.

Needs no calibration data; where a recipe has any, smoothing follows the inputs instead of the norms' weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.passes.base import Options
from compressor.passes.quantize._int8.linears import Int8, Int8Options

if TYPE_CHECKING:
    from compressor.storage.grids import Activations


class Int8DynamicOptions(Int8Options):
    """Options of `int8-dynamic`."""


class Int8Dynamic(Int8):
    """See the module."""

    name: str = "int8-dynamic"
    summary: ClassVar[str] = "8-bit weights and inputs, input ranges found at run time; no data needed."
    Options: ClassVar[type[Options]] = Int8DynamicOptions
    activations: ClassVar[Activations] = "dynamic"

    def __init__(self, options: Int8DynamicOptions) -> None:
        """Take validated options; only losses of layers and a given alpha must be measured on data."""
        measured = options.sensitive > 0 or isinstance(options.smooth, float)
        super().__init__(options, calibration="must" if measured else "takes")


METHOD = Int8Dynamic
