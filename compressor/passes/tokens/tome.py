"""ToMe: tokens that are alike are merged, a few in every block (arXiv 2210.09461).

Between attention and FFN of a block, every second token is compared with all the others by the cosine of their keys,
averaged over heads; the `r` with the nearest partners join them (section 3, bipartite soft matching):

    x'_j = (s_j·x_j + Σ s_i·x_i) / s'_j,   s'_j = s_j + Σ s_i,   over the tokens i that join j

and in later blocks a token draws as much attention as all that it stands for: softmax(QKᵀ/√d + log s), "proportional
attention". Class and distillation tokens neither go nor take others up. No weight changes and no data is needed; what
it costs in quality is measured on the artifact. It covers image models with norms before attention and FFN (ViT,
DeiT, DINOv2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from compressor.errors import ModelError
from compressor.passes.base import Needs, Options, PassFamily, Target

if TYPE_CHECKING:
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change


class TomeOptions(Options):
    """Options of `tome`."""

    r: int = Field(gt=0, description="Tokens merged away in every block; at most half of those that are left.")
    score: Literal["mean_key", "random"] = Field(
        "mean_key", description="What makes tokens alike: their keys; random pairs any, to see what the keys are worth."
    )
    proportional: bool = Field(
        True, description="A merged token draws as much attention as all that it stands for (log-size bias)."
    )


class Tome:
    """See the module."""

    name: str = "tome"
    family: ClassVar[PassFamily] = "tokens"
    summary: ClassVar[str] = "Merge image tokens that are alike, r in every block (ToMe); no data needed."
    Options: ClassVar[type[Options]] = TomeOptions
    needs: Needs = Needs()

    def __init__(self, options: TomeOptions) -> None:
        """Take validated options."""
        self.options = options
        self._planned: Blueprint | None = None

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` with a reduction in every block that has enough tokens.

        Raises:
            ModelError: the family's tokens cannot be reduced, the model's are already, or `r` leaves nothing to do.
        """
        from compressor.model.blueprint import Reduction
        from compressor.model.cost import image_tokens
        from compressor.model.reduced import check_reducible

        check_reducible(self.name, source.family)
        if source.blueprint.reductions:
            raise ModelError(f"{self.name}: the model's tokens are reduced already", hint="Give the model before that.")
        tokens, protect = image_tokens(source), source.family.leading_tokens
        bias = "log_size" if self.options.proportional else "none"
        reductions = []
        for block in range(len(source.shapes.layers)):
            gone = min(self.options.r, (tokens - protect) // 2)
            if gone == 0:
                break
            tokens -= gone
            reductions.append(Reduction(block, tokens, self.options.score, "bipartite", "merge", bias, protect))
        if not reductions:
            raise ModelError(f"{self.name}: an image has {tokens} tokens, too few to merge any")
        self._planned = replace(source.blueprint, reductions=tuple(reductions))
        return self._planned

    def change_block(self, block: BlockView) -> Change:
        """Say which reduction the block gets: the walk builds it, as the loader and the exporters do."""
        from compressor.walk import Change

        assert self._planned is not None, "planned before blocks are walked"
        return Change(block.layer, reduction=self._planned.reduction_at(block.index))


METHOD = Tome
