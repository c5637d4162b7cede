"""The mechanism at the end of an image encoder: which of its tokens go on to the language model.

Behind the last block, a *score* says how much each token matters, and the highest go on, in their old order. It happens
before the projector, which then has less to do, and wholly inside the graph of the encoder: the language model's graphs
stay the same files. The count is static; a prompt has as many places for image tokens. No weight changes and no data is
needed. It covers the image tower of LLaVA models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.errors import ModelError, UsageError
from compressor.passes.base import Needs, Options, PassFamily, Target
from compressor.passes.tokens._schedule import Block, Share

if TYPE_CHECKING:
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change


_TOUCHING = 5
"""An anchor and what touches it above, below and beside."""


class CountOptions(Options):
    """How many tokens go on; exactly one of keep and tokens is given."""

    keep: Share | None = Field(None, description="Share of the patch tokens that go on.")
    tokens: int | None = Field(None, gt=0, description="Patch tokens that go on.")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.keep is None) == (self.tokens is None):
            given = "none" if self.keep is None else "both"
            raise ValueError(f"give exactly one of keep, tokens; given: {given}")
        return self


class LayerOptions(CountOptions):
    """How many tokens go on, and whose attention says which."""

    layer: int | None = Field(
        None, ge=1, description="The block whose attention tells tokens apart, counted from 1; by default the last."
    )


class VisualTokenOptions(LayerOptions):
    """Options of `visual-tokens`."""

    score: Literal[
        "cls_attn",
        "cls_attn_layers",
        "flowcut",
        "received",
        "wpr",
        "diag_x_col",
        "value_norm",
        "random",
        "hidden_state",
    ] = Field("cls_attn", description="What tokens are told apart by; hidden_state goes with most_distant alone.")
    heads: Literal["mean", "max", "rms", "informative"] = Field(
        "mean", description="What makes one score of those of all heads; informative: of heads of middling variance."
    )
    select: Literal["topk", "rows", "neighbours", "topk_anchors", "most_distant"] = Field(
        "topk",
        description="topk: the highest scores; rows: the rows of highest sums; neighbours: the highest of an earlier"
        " block and what touches them, then the highest; topk_anchors: the highest, and tokens that the rest is merged"
        " into; most_distant: those farthest from each other.",
    )
    earlier: tuple[Block, ...] | Literal["all"] = Field(
        (), description="Blocks before `layer` that cls_attn_layers, flowcut and neighbours read too, or all."
    )
    anchors: float = Field(
        0.15, gt=0, lt=1, description="topk_anchors and neighbours: the share of the tokens that are anchors."
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.score == "hidden_state") != (self.select == "most_distant"):
            raise ValueError("score hidden_state goes with select most_distant, and only that")
        reads = self.score in ("cls_attn_layers", "flowcut") or self.select == "neighbours"
        if reads != bool(self.earlier):
            raise ValueError("earlier goes with score cls_attn_layers or flowcut, or select neighbours, which need it")
        return self


class VisualTokens:
    """See the module."""

    family: ClassVar[PassFamily] = "tokens"
    summary: ClassVar[str] = "Hand fewer image tokens on to the language model, by any score; no data needed."
    Options: ClassVar[type[Options]] = VisualTokenOptions
    needs: Needs = Needs()
    name: str = "visual-tokens"

    def __init__(self, options: VisualTokenOptions, *, name: str = "visual-tokens") -> None:
        """Take validated options; `name` is that of the preset."""
        self.options, self.name = options, name
        self._planned: Blueprint | None = None

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` with a selection behind the last block.

        Raises:
            ModelError: the family hands no tokens on, the model's are reduced already, or there is nothing to do.
            UsageError: the options ask for what the model has not got.
        """
        from compressor.model.blueprint import Reduction
        from compressor.model.cost import image_grid
        from compressor.model.reduced import check_reducible

        if source.family.selector is None:
            raise ModelError(
                f"{self.name}: model_type {source.config.model_type}: tokens are selected behind the last block only"
                " where all of them are handed on to a language model",
                hint="Covered is the image tower of a LLaVA model (model.part: vision).",
            )
        check_reducible(self.name, source.family)
        if source.blueprint.reductions:
            raise ModelError(f"{self.name}: the model's tokens are reduced already", hint="Give the model before that.")
        rows, columns = image_grid(source)
        block, kept = self._block(len(source.shapes.layers)), self._kept(rows * columns)
        leading, options = source.family.leading_tokens, self.options
        if options.select == "rows":
            kept = max(kept // columns, 1) * columns
        found = Reduction(
            block,
            kept + leading,
            options.score,
            options.select,
            "merge" if options.select == "topk_anchors" else "drop",
            "none",
            leading,
            heads=options.heads,
            columns=columns if options.select in ("rows", "neighbours") else 0,
            site="output",
            also=self._earlier(source.family.name, block),
            anchors=self._anchors(kept),
        )
        self._planned = replace(source.blueprint, reductions=(found,))
        return self._planned

    def _block(self, blocks: int) -> int:
        layer = self.options.layer or blocks
        if layer > blocks:
            raise UsageError(
                f"{self.name}.layer: block {layer} of an encoder of which {blocks} run", hint=f"Allowed: 1 to {blocks}."
            )
        return layer - 1

    def _earlier(self, family: str, block: int) -> tuple[int, ...]:
        wanted = self.options.earlier
        if wanted == "all":
            return tuple(range(block))
        if wanted and (list(wanted) != sorted(set(wanted)) or wanted[-1] > block):
            raise UsageError(
                f"{self.name}.earlier: {list(wanted)} for block {block + 1} (family {family})",
                hint=f"Blocks before that one, each once, in rising order: 1 to {block}.",
            )
        return tuple(layer - 1 for layer in wanted)

    def _anchors(self, kept: int) -> int:
        select, share = self.options.select, self.options.anchors
        if select == "topk_anchors":
            return min(max(round(share * kept), 1), kept - 1) if kept > 1 else 1
        return max(int(share * kept / _TOUCHING), 1) if select == "neighbours" else 0

    def _kept(self, patches: int) -> int:
        options = self.options
        kept = max(round(patches * options.keep), 1) if options.keep is not None else options.tokens
        assert kept is not None, "one of the two is given"
        if kept >= patches:
            raise ModelError(
                f"{self.name}: an image has {patches} patch tokens, and {kept} are to go on: nothing changes"
            )
        return kept

    def change_block(self, block: BlockView) -> Change:
        """Say which block the selection reads: the walk builds it, as the loader and the exporters do."""
        from compressor.walk import Change

        assert self._planned is not None, "planned before blocks are walked"
        found = self._planned.output_reduction
        return Change(block.layer, reduction=found if found is not None and found.block == block.index else None)


METHOD = VisualTokens
