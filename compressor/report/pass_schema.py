"""The part of `report.json` that says what each pass did, and what it tried before."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from compressor.report.kept_schema import Part


class Trial(Part):
    """One of the things that a pass has tried before it decided.

    Attributes:
        flops: share of the blocks' operations that it leaves.
        divergence: from the dense model, KL of the outputs on calibration data in nats.
        name: what people call it; empty for one of many.
        chosen: whether the pass does it.
    """

    flops: float
    divergence: float
    name: str = ""
    chosen: bool = False


class PassEntry(Part):
    """One pass of the recipe and what it did.

    Attributes:
        name: the method.
        family: structure, tokens, activation or quantize.
        seconds: wall-clock time of the pass.
        parameters_before: parameters of the model that the pass was given.
        parameters_after: parameters of the model that it left behind.
        quality_after: metrics of the model after this pass, for attributing the loss.
        quality_dense: metrics of the dense model measured like `quality_after` (same data, same runtime); empty when
            they are those of the report's `dense`.
        layers: what changed in each: `index`, and `<dimension>_before` and `<dimension>_after` for each dimension.
        notes: what the pass decided by itself, and why.
        trials: what it has tried for that.
        part: the part of the model that it was applied to, of a model of several.
    """

    name: str
    family: str = ""
    part: str = ""
    seconds: float | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    quality_after: dict[str, float | None] = Field(default_factory=dict)
    quality_dense: dict[str, float | None] = Field(default_factory=dict)
    layers: list[dict[str, Any]] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    trials: list[Trial] = Field(default_factory=list)

    @property
    def label(self) -> str:
        """What people call it: the method, and the part where there are several."""
        return f"{self.name} ({self.part})" if self.part else self.name

    @model_validator(mode="before")
    @classmethod
    def _absent_is_empty(cls, data: Any) -> Any:
        """Treat null for the metrics or the layers as absent."""
        empty = ("quality_after", "quality_dense", "layers", "family")
        if isinstance(data, dict):
            return {k: v for k, v in data.items() if not (v is None and k in empty)}
        return data
