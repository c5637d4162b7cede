"""FP16: the artifact stores and computes in float16; outputs stay float32.

The weights are rounded where the artifact is written, so nothing is changed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.passes.base import Needs, Options, PassFamily, Target

if TYPE_CHECKING:
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change


class HalfOptions(Options):
    """Options of `fp16` and `bf16`: there is nothing to choose."""


class Fp16:
    """See the module."""

    name: str = "fp16"
    family: ClassVar[PassFamily] = "quantize"
    summary: ClassVar[str] = "Store and compute in float16: half the size."
    Options: ClassVar[type[Options]] = HalfOptions
    needs: Needs = Needs(dtype="float16")

    def __init__(self, options: HalfOptions) -> None:
        """Take validated options."""

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source`: where the artifact is written its weights are rounded."""
        return source.blueprint

    def change_block(self, block: BlockView) -> Change:
        """Change nothing; report how far rounding moves the weights and refuse what overflows.

        Raises:
            ModelError: a weight is too large for the type.
        """
        import torch

        from compressor.errors import ModelError
        from compressor.walk import Change

        lost = whole = 0.0
        for path, parameter in block.module.named_parameters():
            half = parameter.data.to(getattr(torch, str(self.needs.dtype))).float()
            if not bool(torch.isfinite(half).all()):
                raise ModelError(
                    f"{self.name}: {block.name_of(path)} holds values that {self.needs.dtype} has no room for",
                    hint="Use bf16 with export.format safetensors, or int8-dynamic.",
                )
            lost += float((half - parameter.data).double().square().sum())
            whole += float(parameter.data.double().square().sum())
        return Change(block.layer, {"quantization_error": lost / whole if whole else 0.0})


METHOD = Fp16
