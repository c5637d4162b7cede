"""Schedules: how many patch tokens, or which share of a text's tokens, leave each block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.errors import UsageError
from compressor.passes.base import Options

_PAPER = (4, 7, 10)
_PAPER_DEPTH = 12
WHOLE = 1000
"""Shares of texts are thousandths: counts are then exact in every runtime."""

Share = Annotated[float, Field(gt=0, lt=1)]
Block = Annotated[int, Field(ge=1)]


class ScheduleOptions(Options):
    """Where tokens become fewer, and how many go; exactly one of keep, shares, tokens, r, counts and flops is given.

    Texts take `keep` or `shares`: their lengths differ.
    """

    keep: Share | None = Field(
        None, description="Share of the patch tokens, or of each text's tokens, that go on, at each of `layers`."
    )
    shares: tuple[Share, ...] | None = Field(
        None, min_length=1, description="The same as a share of the first tokens, one number for each of `layers`."
    )
    tokens: int | None = Field(
        None, gt=0, description="Patch tokens that are left behind the last of `layers`, in equal ratios."
    )
    r: int | None = Field(None, gt=0, description="Patch tokens that go at each of `layers`.")
    counts: tuple[Block, ...] | None = Field(
        None, min_length=1, description="Patch tokens that go on at each of `layers`, one number for each."
    )
    flops: Share | None = Field(
        None,
        description="Share of the blocks' operations that is left, in those of `layers` where calibration images show"
        " that least is lost.",
    )
    taper: Literal["constant", "linear"] = Field(
        "constant", description="Of `r`: linear begins with twice as many and ends with none."
    )
    layers: Annotated[tuple[Block, ...], Field(min_length=1)] | Literal["all"] | None = Field(
        None,
        description="The blocks in which tokens go, counted from 1, or all; by default all with `shares`, `r`, `counts`"
        " or `flops`, else the three of the papers: 4, 7, 10 of 12.",
    )
    beyond: int = Field(
        1, ge=1, description="Of a text, the first so many tokens do not count: one of at most so many loses none."
    )
    head_only: bool = Field(
        False,
        description="Behind the attention of the last block, only tokens that the head reads go on: changes no output.",
    )

    full_length: bool = Field(
        False,
        description="Of an image, behind the last block every token stands in its place again, as the one that stands"
        " for it: for features of every patch. Texts always have it.",
    )

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        amounts = {name: getattr(self, name) for name in ("keep", "shares", "tokens", "r", "counts", "flops")}
        given = [name for name, value in amounts.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(amounts)}; given: {', '.join(given) or 'none'}")
        if self.taper != "constant" and self.r is None:
            raise ValueError("taper goes with r")
        if isinstance(self.layers, tuple) and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers: each block once, in rising order; given {list(self.layers)}")
        if self.shares is not None and list(self.shares) != sorted(self.shares, reverse=True):
            raise ValueError(f"shares are of the first tokens and do not rise; given {list(self.shares)}")
        return self


def schedule(name: str, options: ScheduleOptions, blocks: int, patches: int, *, half: bool) -> dict[int, int]:
    """Return the patch tokens that leave each block in which some go, by index of the block from 0.

    Args:
        name: of the pass, for errors.
        options: the amounts.
        blocks: how many the model has.
        patches: patch tokens before the first block.
        half: whether at most half of them can go in one block (pairs are merged).

    Raises:
        UsageError: `layers` or `counts` ask for what the model has not got.
    """
    layers = chosen_layers(name, options, blocks)
    amounts, found, tokens = _amounts(name, options, len(layers), patches), {}, patches
    for layer, wanted in zip(layers, amounts, strict=True):
        left = max(min(wanted if wanted > 0 else tokens + wanted, tokens), tokens - tokens // 2 if half else 1)
        if left < tokens:
            found[layer - 1] = tokens = left
    return found


def text_schedule(name: str, options: ScheduleOptions, blocks: int) -> dict[int, int]:
    """Return the share of a text's tokens that leaves each block in which some go, in thousandths, by its index.

    Raises:
        UsageError: `layers` or `shares` ask for what the model has not got.
    """
    layers = chosen_layers(name, options, blocks)
    amounts = _amounts(name, options, len(layers), WHOLE)
    return {layer - 1: amount for layer, amount in zip(layers, amounts, strict=True)}


def chosen_layers(name: str, options: ScheduleOptions, blocks: int) -> Sequence[int]:
    """Return the blocks in which tokens go, counted from 1.

    Raises:
        UsageError: the model has no such block.
    """
    if not isinstance(options.layers, tuple):
        amounts = (options.shares, options.r, options.counts, options.flops)
        every = options.layers == "all" or any(amount is not None for amount in amounts)
        return range(1, blocks + 1) if every else sorted({-(-blocks * k // _PAPER_DEPTH) for k in _PAPER})
    if options.layers[-1] > blocks:
        raise UsageError(
            f"{name}.layers: block {options.layers[-1]} of a model that has {blocks}", hint=f"Allowed: 1 to {blocks}."
        )
    return options.layers


def _amounts(name: str, options: ScheduleOptions, places: int, patches: int) -> list[int]:
    """Return for each place how many patch tokens go on, or, below 1, minus how many go."""
    if options.r is not None:
        if options.taper == "constant" or places == 1:
            return [-options.r] * places
        return [-round(2 * options.r * (places - 1 - i) / (places - 1)) for i in range(places)]
    for key, given in (("counts", options.counts), ("shares", options.shares)):
        if given is not None and len(given) != places:
            raise UsageError(
                f"{name}.{key}: {len(given)} numbers for {places} blocks",
                hint="Give one for each of `layers`, or for every block.",
            )
    if options.counts is not None:
        return list(options.counts)
    if options.keep is not None or options.shares is not None:
        return [max(round(patches * share), 1) for share in _shares(options, places)]
    assert options.tokens is not None
    return [max(round(patches * (options.tokens / patches) ** ((i + 1) / places)), 1) for i in range(places)]


def _shares(options: ScheduleOptions, places: int) -> list[float]:
    if options.shares is not None:
        return list(options.shares)
    assert options.keep is not None
    return [options.keep ** (i + 1) for i in range(places)]
