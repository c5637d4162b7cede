"""The mechanism at the end of an image encoder: which of its tokens go on to the language model.

Behind the last block, a *score* says how much each token matters, and the highest go on, in their old order. It happens
before the projector, which then has less to do, and wholly inside the graph of the encoder: the language model's graphs
stay the same files. The count is static; a prompt has as many places for image tokens. No weight changes and no data is
needed. It covers the image tower of LLaVA models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

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
REGIONS = "Into how many regions the image is divided, the fields of a square grid, each with a budget of its own."
_SELECTS = (
    "topk: the highest scores; rows: the rows of highest sums; neighbours: the highest of an earlier block and what"
    " touches them, then the highest; topk_anchors: the highest, and tokens that the rest is merged into; clusters: the"
    " same with centres of clusters; regions: the highest of each region; most_distant: those farthest from each other;"
    " k_center: the same, from the highest score on; coverage: those that cover the image and a question best;"
    " directions: some of every principal direction."
)
_BY_FEATURES = ("most_distant", "coverage", "directions")
_MERGING = ("topk_anchors", "clusters")
_PLACED = ("rows", "neighbours", "regions")


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


class RegionOptions(LayerOptions):
    """How many tokens go on, whose attention says which, and how many regions have a budget."""

    regions: Literal[4, 9, 16, 25, 36] = Field(4, description=REGIONS)


class VisualTokenOptions(LayerOptions):
    """Options of `visual-tokens`."""

    score: Literal[
        "cls_attn",
        "cls_attn_layers",
        "flowcut",
        "attention_entropy",
        "cls_similarity",
        "received",
        "wpr",
        "diag_x_col",
        "value_norm",
        "random",
        "hidden_state",
    ] = Field(
        "cls_attn",
        description="What tokens are told apart by; hidden_state goes with selects that need it.",
    )
    heads: Literal["mean", "max", "rms", "informative"] = Field(
        "mean", description="What makes one score of those of all heads; informative: of heads of middling variance."
    )
    select: Literal[
        "topk",
        "rows",
        "neighbours",
        "topk_anchors",
        "clusters",
        "regions",
        "most_distant",
        "k_center",
        "coverage",
        "directions",
    ] = Field("topk", description=_SELECTS)
    earlier: tuple[Block, ...] | Literal["all"] = Field(
        (),
        description="Blocks before `layer` that cls_attn_layers, flowcut and neighbours read too, or all; for regions"
        " the one whose attention budgets come from.",
    )
    anchors: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="topk_anchors, clusters and neighbours: the share of the tokens that are anchors.",
    )
    regions: Literal[4, 9, 16, 25, 36] = Field(4, description=REGIONS)
    directions: int = Field(8, ge=2, description="directions: how many principal directions of the image there are.")
    quota: Literal["attention", "guided", "context", "density"] | None = Field(
        None, description="regions: what budgets come from; see the page of the method."
    )
    temperature: float = Field(1.0, gt=0, description="Of the softmax of the quotas guided and context.")
    alike: float = Field(0.7, gt=0, lt=1, description="Quota density: from which cosine of keys on patches are alike.")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.score == "hidden_state") != (self.select in _BY_FEATURES):
            raise ValueError(f"score hidden_state goes with select {', '.join(_BY_FEATURES)}, and only these")
        if (self.select == "regions") != (self.quota is not None):
            raise ValueError("quota goes with select regions, which needs it")
        reads = self.score in ("cls_attn_layers", "flowcut") or self.select == "neighbours"
        if reads != bool(self.earlier) and self.select != "regions":
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
        from compressor.model.token_output import BY_PIXELS

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
            "merge" if options.select in _MERGING else "drop",
            "none",
            leading,
            heads=options.heads,
            columns=columns if options.select in _PLACED or options.score in BY_PIXELS else 0,
            site="output",
            also=self._earlier(source.family.name, block),
            anchors=self._anchors(kept),
            **self._regional(rows, columns),
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

    def _regional(self, rows: int, columns: int) -> dict[str, Any]:
        options = self.options
        if options.select == "directions":
            if options.directions >= rows * columns:
                raise UsageError(
                    f"{self.name}.directions: {options.directions} directions of {rows * columns} patches",
                    hint=f"At most {rows * columns - 1}.",
                )
            return {"regions": options.directions}
        if options.quota is None:
            return {}
        if options.regions > min(rows, columns) ** 2:
            raise UsageError(
                f"{self.name}.regions: {options.regions} regions of {rows} x {columns} patches",
                hint=f"At most {min(rows, columns)} side by side fit in.",
            )
        softened = options.quota in ("guided", "context")
        return {
            "regions": options.regions,
            "quota": options.quota,
            "temperature": options.temperature if softened else 0.0,
            "alike": options.alike if options.quota == "density" else 0.0,
        }

    def _anchors(self, kept: int) -> int:
        select, share = self.options.select, self.options.anchors
        if select in _MERGING:
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
