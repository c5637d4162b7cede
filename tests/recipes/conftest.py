"""Toy methods and a parser that knows them: recipes are tested without any method's file."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from compressor.errors import RecipeError
from compressor.recipe import Recipe, parse_recipe


class Target(StrEnum):
    FFN = "ffn"
    HEADS = "heads"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    damping: float = Field(0.01, gt=0, description="Share of the mean diagonal that is added to it.")


class Toy(BaseModel):
    """Options of every kind that a method may have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sparsity: float = Field(ge=0, lt=1, description="Share of channels removed.")
    importance: Literal["obs", "act"] = Field("obs", description="What ranks channels.")
    target: Target = Field(Target.FFN, description="What is pruned.")
    layers: tuple[int, ...] | Literal["all"] = Field("all", description="Which layers.")
    symmetric: bool = Field(True, description="Whether zero stays zero.")
    solver: Inner = Field(default_factory=Inner, description="How the least squares are solved.")


class Bare(BaseModel):
    """No options."""

    model_config = ConfigDict(extra="forbid")


TOYS: dict[str, type[BaseModel]] = {"width": Toy, "int8-dynamic": Bare}

GOOD = """\
version: 1
name: good
model: {id: demo}
calibration: {data: train.txt, samples: 8, length: 32}
evaluation: {data: valid.txt, metrics: [perplexity, top1]}
passes:
  - width: {sparsity: 0.3}
export: {format: onnx}
verify:
  perplexity_increase: {max: 0.15}
  speedup: {min: 1.3}
"""


@pytest.fixture
def toys() -> dict[str, type[BaseModel]]:
    return TOYS


@pytest.fixture
def good() -> str:
    return GOOD


@pytest.fixture
def parse() -> Callable[..., Recipe]:
    return lambda text, *overrides: parse_recipe(text, source="r.yaml", options=TOYS, overrides=overrides)


@pytest.fixture
def problems() -> Callable[..., list[str]]:
    """Return the lines of the error that a text must give, without the head."""

    def find(text: str, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            parse_recipe(text, source="r.yaml", options=TOYS, overrides=overrides)
        head, *lines = str(caught.value).splitlines()
        assert head == f"r.yaml: {len(lines)} problem{'s' if len(lines) != 1 else ''}"
        return [line.strip() for line in lines]

    return find
