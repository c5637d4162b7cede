"""What a pass does to one block."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from compressor.architectures import LayerShape
from compressor.model.blueprint import GateSpec, Reduction
from compressor.storage.grids import GridSpec


@dataclass(frozen=True)
class Change:
    """What a pass did to one block.

    Attributes:
        layer: widths after the change.
        figures: measured numbers by name, such as `reconstruction_error` (relative) or `kept_channels`.
        grids: the grids of quantized weights, by the path of their module in the block.
        reduction: the token reduction that the block gets; None where the pass gives it none.
        gates: the gates that its linear modules get, by their path in the block.
    """

    layer: LayerShape
    figures: dict[str, float] = field(default_factory=dict)
    grids: dict[str, GridSpec] = field(default_factory=dict)
    reduction: Reduction | None = None
    gates: dict[str, GateSpec] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Change:
        """Return the change that `to_json` described."""
        return cls(
            LayerShape(**{**data["layer"], "residual": tuple(data["layer"]["residual"])}),
            dict(data["figures"]),
            {path: GridSpec(**spec) for path, spec in data["grids"].items()},
            None if data["reduction"] is None else Reduction(**data["reduction"]),
            {path: GateSpec(**gate) for path, gate in data["gates"].items()},
        )
