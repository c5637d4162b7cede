"""RSQ: rotate the residual stream, scale tokens by their importance, then quantize as GPTQ does (arXiv 2503.01820)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor.passes.base import Options, Target
from compressor.passes.numerics.rotation import Projection
from compressor.passes.quantize.gptq import Gptq, GptqOptions

if TYPE_CHECKING:
    import torch

    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Walk


class RsqOptions(GptqOptions):
    """Options of `rsq`."""

    rotate: Literal["auto", True, False] = Field(
        "auto", description="Rotate the residual stream; auto does so where the model allows it, true insists."
    )
    importance: Literal["attention", "none"] = Field(
        "attention", description="attention: tokens count by the attention that they draw in their block."
    )
    least_importance: float = Field(0.5, gt=0, le=1, description="Factor of the least important token's inputs.")
    seed: int = Field(0, ge=0, description="Of the rotation.")


class Rsq(Gptq):
    """See the module."""

    name: str = "rsq"
    summary: ClassVar[str] = "GPTQ on a rotated residual stream, with tokens weighed by the attention that they draw."
    Options: ClassVar[type[Options]] = RsqOptions

    def __init__(self, options: Any) -> None:
        """Take validated options."""
        super().__init__(options)
        self.needs = replace(self.needs, turns_stream=options.rotate is not False)
        self._importance: dict[int, torch.Tensor] = {}
        self.notes: list[str] = []

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` with grids.

        Raises:
            ModelError: the family is not covered, or `rotate: true` asks for what the model does not allow.
        """
        from compressor.passes.quantize._weights.rotate import check_rotatable

        if self.options.rotate is True:
            check_rotatable(self.name, source)
        return super().plan(source, target)

    def change_stem(self, walk: Walk) -> None:
        """Draw the rotation, and rotate what writes to the stream before the first block."""
        from compressor.passes.surgery.stream import set_stem

        self.frame = self._rotation(walk.source)
        if self.frame is not None:
            self.frame = Projection(self.frame.matrix.to(walk.device))
            set_stem(walk, self.frame)
        super().change_stem(walk)

    def _rotation(self, source: ModelFolder) -> Projection | None:
        """Return the rotation of the residual stream; None where there is to be none, or can be none."""
        from compressor.passes.numerics.rotation import random_rotation
        from compressor.passes.quantize._weights.rotate import why_not

        reason = why_not(source)
        if self.options.rotate == "auto" and reason is not None:
            self.notes = [f"the residual stream is not rotated: {reason}"]
        if not self.options.rotate or reason is not None:
            return None
        return random_rotation(source.shapes.hidden_size, self.options.seed, centre=source.family.norm == "layer")

    def change_tail(self, walk: Walk) -> None:
        """Rotate what reads the stream after the last block."""
        from compressor.passes.surgery.stream import rotate_tail

        if self.frame is not None:
            rotate_tail(walk, self.frame)
        super().change_tail(walk)

    def prepare_block(self, block: BlockView) -> None:
        """Rotate a block, and see how important the tokens are that reach it."""
        from compressor.passes.quantize._weights.concentration import concentration, scaled
        from compressor.passes.surgery.stream import rotate_block

        if self.frame is not None:
            rotate_block(block, self.frame)
            block.seal()
        self._importance = {}
        if self.options.importance == "none":
            return
        for k in range(len(block)):
            drawn = concentration(block, block.current_in(k), k)
            self._importance[k] = scaled(drawn, self.options.least_importance, block.token_mask(k)).square()

    def token_weights(self, block: BlockView, k: int) -> torch.Tensor | None:
        """Return the squares of the factors of the tokens of batch k, [batch, tokens]."""
        return self._importance.get(k)


METHOD = Rsq
