"""Everything that a model is, without its weights: widths, grids of quantized weights, changes of its computation.

A blueprint is plain data. config.json states it, `build_skeleton` builds it, and a pass plans one; so a change that a
blueprint holds reaches the walk, the counting of parameters and operations, the loader, the verification and the
exporters at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from compressor.architectures import Family, StackShapes, shapes_in, shapes_section, stock_shapes
from compressor.errors import ModelError, summary
from compressor.storage.grids import GridSpec, read_section

SECTION = "compression"
"""Key of config.json that states what differs from the stock model, grids left out."""
VERSION = 2
SUMMED = ("cascade", "cls_sum")
"""Scores that are sums over all blocks so far."""
LLM_LAYER = "llm_layer"
"""Site of a reduction behind a block of a language model."""


@dataclass(frozen=True)
class Reduction:
    """A place where a stack goes on with fewer tokens.

    Attributes:
        block: index of the block in which it happens; at the site `output`, of the one whose attention it reads.
        keep: tokens that go on, those that are protected among them.
        score: what tokens are told apart by (`compressor.model.token_scores`).
        select: how it is settled which of them go (`compressor.model.token_select`).
        dropped: what becomes of those (`compressor.model.token_merge`).
        attention_bias: `log_size` lets a token draw as much attention as all that it stands for (ToMe's proportional
            attention), in this and all later blocks; `none` does not.
        protect: how many tokens at the start never go (class token, distillation token).
        stack: the tower; "" in a model of one.
        heads: what makes one score of those of all heads (`JOINS` there).
        similar: how many of the tokens that go do so because they are like one that stays (`topk_alike`).
        merged: how many of the tokens that go are merged; the others are dropped. 0: all.
        alpha: how much of a token is handed on (`propagate`).
        temperature: of the shares in which tokens are handed on (`transform`), or regions get theirs (`regions`).
        columns: patches side by side in the image (`propagate`, `rows`, `neighbours`, `regions`).
        classes: how many of the first tokens the head reads, where others are protected too (registers). 0: all.
        also: at the sites `output` and `llm_layer`: earlier blocks that it reads, too.
        anchors: how many tokens others are merged into (`topk_anchors`, `clusters`), or go on with their neighbours
            (`neighbours`).
        regions: into how many the image is divided (`regions`), a square number; or how many principal directions there
            are (`directions`).
        quota: what the regions' budgets come from (`compressor.model.token_regions`).
        alike: from which cosine on two tokens are alike (quota `density`).
        site: `block`, between attention and FFN; `output`, behind the last block (`compressor.model.token_output`); or
            `llm_layer`, behind a block of a language model (`compressor.model.llm_block`).
        share: of a text: thousandths of its tokens that go on, so that each text's count comes from its own length
            (`compressor.model.token_texts`); `keep` is then 0. 0: the counts are `keep`.
        beyond: of a text: its first so many tokens do not count for `share`, so that a short text loses none.
        closing: of a text: how many tokens at its end never go ([SEP]).
        keep_norm: what is made of several tokens is as long as they are on average.
        returns: of an image: tokens that go come back behind the last block, each as the one that stands for it then.
        start: at the site `llm_layer`: position of the first image token of a prompt.
        count: there: image tokens of a prompt before the first reduction; `keep` are those that go on behind this one.
        spaced: there: how many of those are evenly spaced ones, whatever their scores.
        mass: there: share of the scores' sum that those that go on have at least; the count comes from it, `keep` being
            the least. 0: the count is `keep`.
    """

    block: int
    keep: int
    score: str
    select: str
    dropped: str
    attention_bias: str = "log_size"
    protect: int = 1
    stack: str = ""
    heads: str = "mean"
    similar: int = 0
    merged: int = 0
    alpha: float = 0.0
    temperature: float = 0.0
    columns: int = 0
    classes: int = 0
    site: str = "block"
    also: tuple[int, ...] = ()
    anchors: int = 0
    regions: int = 0
    quota: str = ""
    alike: float = 0.0
    share: int = 0
    beyond: int = 0
    closing: int = 0
    returns: bool = False
    keep_norm: bool = False
    start: int = 0
    count: int = 0
    spaced: int = 0
    mass: float = 0.0

    def __post_init__(self) -> None:
        """Take the blocks of `also` in the form that JSON gives them, too."""
        object.__setattr__(self, "also", tuple(self.also))

    def stated(self) -> dict[str, Any]:
        """Return what config.json states of it: all but the stack, and what only some methods need where they do."""
        always = {"block", "keep", "score", "select", "dropped", "attention_bias", "protect"}
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name in always
            if field.name != "stack"
        }


def in_order(reductions: Sequence[Reduction]) -> list[Reduction]:
    """Return reductions in the order in which they happen."""
    return sorted(reductions, key=lambda reduction: (reduction.site == "output", reduction.block))


@dataclass(frozen=True)
class GateSpec:
    """Which inputs of a linear module, or values of an activation function, count as 0.

    Attributes:
        threshold: those of at most this magnitude do.
        per_channel: each channel has a threshold of its own, in the tensor `threshold` of the activation function.
        count: only so many go on, those of the largest magnitudes; 0: the threshold says which. One that is as large as
            the next one behind them does not go on.
    """

    threshold: float = 0.0
    per_channel: bool = False
    count: int = 0


@dataclass(frozen=True)
class Blueprint:
    """Everything that a model is, without its weights.

    Attributes:
        stacks: widths by tower; "" names the one of a model that has no more.
        grids: specs of the grids that quantized weights lie on, by module name.
        reductions: where tokens become fewer, by rising block.
        gates: thresholds, by the name of the linear module whose inputs, or of the activation whose values they gate.
        tied: whether the head shares the embedding matrix.
    """

    stacks: Mapping[str, StackShapes]
    grids: Mapping[str, GridSpec] = field(default_factory=dict)
    reductions: tuple[Reduction, ...] = ()
    gates: Mapping[str, GateSpec] = field(default_factory=dict)
    tied: bool = False

    @property
    def shapes(self) -> StackShapes:
        """The widths of the only stack."""
        (only,) = self.stacks.values()
        return only

    @property
    def computes_as_stock(self) -> bool:
        """Whether stock modules, with the blueprint's weights, compute what the model computes."""
        return not self.reductions and not self.gates

    def with_shapes(self, shapes: StackShapes) -> Blueprint:
        """Return the same with other widths of its only stack."""
        (name,) = self.stacks
        return replace(self, stacks={name: shapes})

    def reduction_at(self, block: int) -> Reduction | None:
        """Return the reduction inside a block, None where it has none."""
        return next((reduction for reduction in self._inside if reduction.block == block), None)

    @property
    def _inside(self) -> tuple[Reduction, ...]:
        return tuple(reduction for reduction in self.reductions if reduction.site == "block")

    @property
    def layer_reductions(self) -> tuple[Reduction, ...]:
        """Where image tokens become fewer behind a block of a language model, by rising block."""
        found = (reduction for reduction in self.reductions if reduction.site == LLM_LAYER)
        return tuple(sorted(found, key=lambda reduction: reduction.block))

    def in_prompts_at(self, block: int) -> bool:
        """Tell whether a block of a language model is one of ours for the sake of image tokens."""
        found = self.layer_reductions
        return bool(found) and block >= min(block for r in found for block in (r.block, *r.also))

    @property
    def output_reduction(self) -> Reduction | None:
        """The reduction of the tokens that leave the last block, None where there is none."""
        return next((reduction for reduction in self.reductions if reduction.site == "output"), None)

    def shown_at(self, block: int) -> bool:
        """Tell whether a block leaves what it has seen for the reduction behind the last block."""
        found = self.output_reduction
        return found is not None and block in (found.block, *found.also)

    def bias_at(self, block: int) -> bool:
        """Tell whether a block's attention weighs tokens by what they stand for: a reduction before it says so."""
        before = [reduction for reduction in self._inside if reduction.block < block]
        return bool(before) and before[-1].attention_bias == "log_size"

    def sums_at(self, block: int) -> Reduction | None:
        """Return the reduction in a block or behind it for which it sums up the attention that tokens receive."""
        return next((r for r in self._inside if r.score in SUMMED and r.block >= block), None)

    def reduced_at(self, block: int) -> bool:
        """Tell whether a block is one of ours for the sake of tokens."""
        inside = self.reduction_at(block) is not None or self.bias_at(block) or self.sums_at(block) is not None
        behind = any(reduction.share and reduction.block < block for reduction in self.reductions)
        return inside or behind or self.shown_at(block) or self.restores_at(block)

    def restores_at(self, block: int) -> bool:
        """Tell whether behind a block every token stands again, as the one that stands for it."""
        return block == len(self.shapes.layers) - 1 and any(r.share or r.returns for r in self.reductions)


def read_blueprint(config: Any, family: Family) -> Blueprint:
    """Return the blueprint that a transformers config and its sections of ours state.

    Raises:
        ModelError: a width or a count is below one, or a section is of an unknown version or does not fit the model.
    """
    stock = stock_shapes(config, family)
    tied = bool(getattr(config, "tie_word_embeddings", False)) and "lm_head" in family.heads
    blueprint = Blueprint({"": stock}, read_section(config), tied=tied)
    section = getattr(config, SECTION, None)
    return _applied(blueprint, section) if section else blueprint


def _applied(blueprint: Blueprint, section: Any) -> Blueprint:
    stated = section.get("version") if isinstance(section, dict) else None
    if stated not in (1, VERSION):
        raise ModelError(
            f"config.json: the compression section is not of version 1 or {VERSION}: {section!r:.120}",
            hint="The model was written by another version of compressor, or edited.",
        )
    try:
        if stated == 1:  # one stack, and widths alone
            return blueprint.with_shapes(shapes_in(section, blueprint.shapes))
        parts = section["stacks"].items()
        return replace(
            blueprint,
            stacks={name: shapes_in(part, blueprint.stacks[name]) for name, part in parts},
            reductions=tuple(Reduction(stack=name, **entry) for name, part in parts for entry in part["tokens"]),
            gates={module: GateSpec(**gate) for _, part in parts for module, gate in part["gates"].items()},
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"config.json: the compression section does not describe the model's layers: {summary(error)}"
        ) from error


def compression_section(blueprint: Blueprint) -> dict[str, Any]:
    """Return the `compression` section that `read_blueprint` reads back; grids have a section of their own."""

    def part(name: str, shapes: StackShapes) -> dict[str, Any]:
        return {
            **shapes_section(shapes),
            "tokens": [reduction.stated() for reduction in blueprint.reductions if reduction.stack == name],
            "gates": {module: asdict(gate) for module, gate in blueprint.gates.items()},
        }

    return {"version": VERSION, "stacks": {name: part(name, shapes) for name, shapes in blueprint.stacks.items()}}
