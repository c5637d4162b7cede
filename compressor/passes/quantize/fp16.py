"""FP16: the artifact stores and computes in float16; outputs stay float32.

The weights are rounded where the artifact is written, so nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.passes.base import Options, PassFamily

if TYPE_CHECKING:
    import torch

    from compressor.architectures import Shapes
    from compressor.model.folder import ModelFolder
    from compressor.storage.grids import GridSpec
    from compressor.walk.walk import BlockView, Change, Walk


class HalfOptions(Options):
    """Options of `fp16` and `bf16`: there is nothing to choose."""


class Fp16:
    """See the module.

    Attributes:
        artifact_dtype: torch name of the type of the artifact's weights.
        formats: what the recipe may export.
    """

    name: ClassVar[str] = "fp16"
    family: ClassVar[PassFamily] = "quantize"
    summary: ClassVar[str] = "Store and compute in float16: half the size."
    Options: ClassVar[type[Options]] = HalfOptions
    calibrated: ClassVar[bool] = False
    artifact_dtype: ClassVar[str] = "float16"
    formats: ClassVar[tuple[str, ...]] = ("onnx", "ort", "safetensors")
    needs_dense = False
    walks = 1

    def __init__(self, options: HalfOptions) -> None:
        """Take validated options."""

    def plan(self, source: ModelFolder) -> Shapes:
        """Return the shapes of `source`."""
        return source.shapes

    def plan_grids(self, source: ModelFolder) -> dict[str, GridSpec]:
        """Return no grids."""
        return {}

    def survey(self, walk: Walk, planned: Shapes) -> dict[str, torch.Tensor]:
        """Nothing must be known."""
        return {}

    def begin(self, source: ModelFolder, planned: Shapes, findings: Mapping[str, torch.Tensor]) -> None:
        """Nothing begins."""

    def change_stem(self, walk: Walk) -> None:
        """Change nothing."""

    def change_block(self, block: BlockView) -> Change:
        """Change nothing; report how far rounding moves the weights and refuse what overflows.

        Raises:
            ModelError: a weight is too large for the type.
        """
        import torch

        from compressor.errors import ModelError
        from compressor.walk.walk import Change

        lost = whole = 0.0
        for path, parameter in block.module.named_parameters():
            half = parameter.data.to(getattr(torch, self.artifact_dtype)).float()
            if not bool(torch.isfinite(half).all()):
                raise ModelError(
                    f"{self.name}: {block.name_of(path)} holds values that {self.artifact_dtype} has no room for",
                    hint="Use bf16 with export.format safetensors, or int8-dynamic.",
                )
            lost += float((half - parameter.data).double().square().sum())
            whole += float(parameter.data.double().square().sum())
        return Change(block.layer, {"quantization_error": lost / whole if whole else 0.0})

    def change_tail(self, walk: Walk) -> None:
        """Change nothing."""

    def config_updates(self, source: ModelFolder) -> dict[str, Any]:
        """Change nothing: the exporter states the dtype."""
        return {}


METHOD = Fp16
