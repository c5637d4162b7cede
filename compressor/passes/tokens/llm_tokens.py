"""The mechanism inside a language model: image tokens of the prompt become fewer behind some of its layers.

Behind a layer, a *score* says how much each image token matters, and the highest go on, in their old order, with their
positions; text tokens always stay. Layers behind it compute fewer tokens in the prefill, and their key-value caches are
shorter in every step after it. It is one graph with a cache and the inputs that it always had: which places of a prompt
hold image tokens is static. No weight changes and no data is needed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.errors import ModelError, UsageError
from compressor.passes.base import Needs, Options, PassFamily, Target
from compressor.passes.tokens._schedule import Block, Share

if TYPE_CHECKING:
    from compressor.model.blueprint import Blueprint, Reduction
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change


Left = Annotated[int, Field(ge=0)]
Steepness = Annotated[float, Field(gt=0, le=1000)]


class ImageSpan(Options):
    """Which places of a prompt hold image tokens."""

    start: int = Field(0, ge=0, description="Position of the first image token; 0: the prompt begins with the image.")
    count: int | None = Field(
        None, ge=2, description="Image tokens; by default as many as the model's image part gives features."
    )


class SpanOptions(Options):
    """Where the image tokens stand."""

    image: ImageSpan = Field(ImageSpan(start=0, count=None), description="Where the prompt has its image tokens.")


class LayeredOptions(SpanOptions):
    """Where the image tokens stand, behind which layers they become fewer, and how many are left.

    Exactly one of keep, tokens, counts and sigmoid is given.
    """

    layers: Annotated[tuple[Block, ...], Field(min_length=1)] = Field(
        (2,), description="The layers behind which tokens go, counted from 1, in rising order."
    )
    keep: Share | None = Field(None, description="Share of the image tokens that go on, at each of `layers`.")
    tokens: int | None = Field(
        None, gt=0, description="Image tokens that are left behind the last of `layers`, in equal ratios."
    )
    counts: tuple[Left, ...] | None = Field(
        None, min_length=1, description="Image tokens that go on at each of `layers`, one number for each."
    )
    sigmoid: tuple[Steepness, Share] | None = Field(
        None,
        description="The shares of the image tokens that go on at each of `layers` fall along the depth as a sigmoid:"
        " its steepness, and the depth (0 to 1) where half of them are left.",
    )

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        names = ("keep", "tokens", "counts", "sigmoid")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(names)}; given: {', '.join(given) or 'none'}")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers: each once, in rising order")
        if self.counts is not None and len(self.counts) != len(self.layers):
            raise ValueError(f"counts: one number for each of the {len(self.layers)} layers")
        return self


class LlmTokenOptions(LayeredOptions):
    """Options of `llm-tokens`."""

    score: Literal["last_attn", "unturned_attn", "transitions", "page_rank", "random"] = Field(
        "last_attn",
        description="What tokens are told apart by: attention of the prompt's last token, the same without positions,"
        " how much layers change a token with the attention of the text behind, or the rank on the graph of attention.",
    )
    summed: int = Field(
        4, ge=1, description="transitions: how many layers sum up changes for each of `layers`, that one the last."
    )
    spaced: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Of those that go on at the first of `layers`, the share of evenly spaced ones, of any score.",
    )
    mass: Share | None = Field(
        None,
        description="As many go on as have this share of the scores' sum, a number of each prompt's own, and at least"
        " as many as `counts` says; of one layer alone.",
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.mass is not None and (self.counts is None or len(self.layers) > 1 or self.score == "random"):
            raise ValueError("mass goes with one of layers, counts of the least, and a score that is not random")
        return self


class LlmTokens:
    """See the module."""

    family: ClassVar[PassFamily] = "tokens"
    summary: ClassVar[str] = "Let image tokens go inside a language model, behind some of its layers; no data needed."
    Options: ClassVar[type[Options]] = LlmTokenOptions
    needs: Needs = Needs()
    name: str = "llm-tokens"

    def __init__(self, options: LlmTokenOptions, *, name: str = "llm-tokens") -> None:
        """Take validated options; `name` is that of the preset."""
        self.options, self.name = options, name
        self._planned: Blueprint | None = None
        self._known: int | None = None

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` with a reduction behind each of the layers.

        Raises:
            ModelError: the family's image tokens cannot become fewer, the model's tokens are reduced already, how many
                there are is not known, or none is to go.
            UsageError: the options ask for what the model has not got.
        """
        from compressor.model.llm_block import check_family

        if source.task != "text-generation":
            raise ModelError(
                f"{self.name}: {source.family.name} for {source.task}: image tokens go inside language models",
                hint="Take the language part of a LLaVA model (model.part: language).",
            )
        check_family(self.name, source.family, source.config)
        if source.blueprint.reductions:
            raise ModelError(f"{self.name}: the model's tokens are reduced already", hint="Give the model before that.")
        count, layers = self._count(source), self.options.layers
        if layers[-1] >= len(source.shapes.layers):
            raise UsageError(
                f"{self.name}.layers: {layers[-1]} of a model of {len(source.shapes.layers)} layers",
                hint=f"Allowed: 1 to {len(source.shapes.layers) - 1}; behind the last layer nothing is saved.",
            )
        reductions, before = [], count
        for layer, left in zip(layers, self._counts(count, len(source.shapes.layers)), strict=True):
            if left < before:
                reductions.append(self._reduction(layer - 1, left, count))
                before = left
        if not reductions:
            raise ModelError(f"{self.name}: a prompt has {count} image tokens, and none of them is to go")
        self._planned = replace(source.blueprint, reductions=tuple(reductions))
        return self._planned

    def _reduction(self, block: int, left: int, count: int) -> Reduction:
        from compressor.model.blueprint import LLM_LAYER, Reduction

        options, first = self.options, block == self.options.layers[0] - 1
        earlier = range(max(block - options.summed + 1, 0), block) if options.score == "transitions" else ()
        return Reduction(
            block,
            left,
            options.score,
            "topk",
            "drop",
            "none",
            0,
            site=LLM_LAYER,
            start=options.image.start,
            count=count,
            also=tuple(earlier),
            spaced=round(options.spaced * left) if first else 0,
            mass=options.mass or 0.0,
        )

    def _count(self, source: ModelFolder) -> int:
        from compressor.model.image_places import features_in_prompt

        # planned first on the part of the whole model, then where that lies by itself, out of sight of its image part
        self._known = features_in_prompt(source) or self._known
        count = self.options.image.count or self._known
        if count is None:
            raise ModelError(
                f"{self.name}.image.count: how many image tokens a prompt of this model ({source.family.name}) has is"
                " not known",
                hint=f"Give {self.name}: {{image: {{count: NUMBER}}}}, or the language part of a LLaVA model.",
            )
        room = int(getattr(source.config, "max_position_embeddings", 0) or 0)
        if room and self.options.image.start + count >= room:
            raise UsageError(
                f"{self.name}.image: {count} image tokens from position {self.options.image.start} on, and the model"
                f" has {room} positions",
                hint="Give image.start and image.count as the prompt has them.",
            )
        return count

    def _counts(self, count: int, depth: int) -> list[int]:
        """Return how many image tokens go on at each of the layers, of `count` in a model of `depth` layers."""
        options, steps = self.options, len(self.options.layers)
        if options.counts is not None:
            found = list(options.counts)
        elif options.sigmoid is not None:
            found = [max(round(count * falling(layer / depth, *options.sigmoid)), 1) for layer in options.layers]
        elif options.tokens is not None:
            ratio = (options.tokens / count) ** (1 / steps)
            found = [max(round(count * ratio**step), options.tokens) for step in range(1, steps + 1)]
        else:
            assert options.keep is not None, "one of the three is given"
            found = [max(round(count * options.keep**step), 1) for step in range(1, steps + 1)]
        if found != sorted(found, reverse=True) or found[0] > count:
            raise UsageError(
                f"{self.name}: image tokens that go on: {found} of {count}", hint="Each number at most the one before."
            )
        return found

    def change_block(self, block: BlockView) -> Change:
        """Say which reduction the block gets: the walk builds it, as the loader and the exporters do."""
        from compressor.walk import Change

        assert self._planned is not None, "planned before blocks are walked"
        found = (reduction for reduction in self._planned.layer_reductions if reduction.block == block.index)
        return Change(block.layer, reduction=next(found, None))


def falling(depth: float, steepness: float, middle: float) -> float:
    """Return the share of image tokens that is left at a depth from 0 to 1, by a sigmoid that begins with all."""
    low, high = (1 / (1 + math.exp(-steepness * (middle - place))) for place in (depth, 0.0))
    return low / high


METHOD = LlmTokens
