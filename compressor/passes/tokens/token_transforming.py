"""Token Transforming: every token shares itself out over those that stay (arXiv 2506.05709).

X' = W·X with a W of many to many, which has pruning (one to one) and merging (many to one) as special cases. The tokens
that receive most attention stay; each token, those that stay included, goes to them by a softmax of the cosine of keys
over a temperature, and the new tokens are means, weighted by how many of the first tokens each part stands for. A token
draws as much attention as all that it stands for. Class and distillation tokens stay as they are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens._schedule import ScheduleOptions
from compressor.passes.tokens.token_reduction import TokenReduction


class TransformingOptions(ScheduleOptions):
    """Options of `token-transforming`."""

    score: Literal["received", "cls_attn", "random"] = Field(
        "received", description="Which tokens stay: those that receive most attention, from all or the class token."
    )
    temperature: float = Field(0.02, gt=0, description="Low: a token goes to the most similar alone; high: to all.")
    proportional: bool = Field(
        True, description="A token draws as much attention as all that it stands for (log-size bias)."
    )
    keep_norm: bool = Field(
        False, description="Of images: a merged token is as long as its parts are on average; their mean is shorter."
    )


METHOD = Preset(
    "token-transforming",
    of=TokenReduction,
    Options=TransformingOptions,
    fixed={"dropped": "transform"},
    summary="Share every image token out over those that stay, by how alike they are.",
    paper="arXiv 2506.05709",
)
