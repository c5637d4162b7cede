"""The parts that a token method can be put together from, as options."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compressor.passes.tokens._schedule import ScheduleOptions

Score = Literal["cls_attn", "received", "wpr", "diag_x_col", "value_norm", "cascade", "cls_sum", "random", "mean_key"]
_PAIRED = ("mean_key", "random")
_SINGLE = ("drop", "merge", "propagate", "exit", "recover")
"""What becomes of tokens of which no new one is made."""


class TokenOptions(ScheduleOptions):
    """Options of `token-reduction`."""

    score: Score = Field("received", description="What tokens are told apart by; mean_key goes with bipartite alone.")
    heads: Literal["mean", "max", "rms", "informative"] = Field(
        "mean", description="What makes one score of those of all heads; informative: of heads of middling variance."
    )
    select: Literal["topk", "topk_alike", "bipartite"] = Field(
        "topk",
        description="topk: the lowest scores go; topk_alike: some of them for being like one that stays; bipartite:"
        " the half that is most like the other half.",
    )
    dropped: Literal["drop", "fuse", "merge", "propagate", "transform", "cache", "exit", "recover"] = Field(
        "drop",
        description="What becomes of them: nothing; one token of all; each joins its nearest; each is added to its"
        " neighbours; every token shares itself out; one token of all comes back before the last block; each comes back"
        " behind the last block as it was when it left, or is made there of those that it was like.",
    )
    proportional: bool = Field(
        False, description="A token draws as much attention as all that it stands for (log-size bias)."
    )
    keep_norm: bool = Field(
        False,
        description="What is made of several tokens is as long as they are on average; their mean is shorter. Goes with"
        " dropped merge, fuse or transform, on images.",
    )
    alike: float = Field(0.25, gt=0, lt=1, description="topk_alike: the share of those that go for being alike.")
    merged: float = Field(1.0, gt=0, le=1, description="merge: the share that is merged; lower scores are dropped.")
    alpha: float = Field(0.1, gt=0, le=1, description="propagate: how much of a token is handed on.")
    temperature: float = Field(
        0.02, gt=0, description="transform, recover: low: to (of) the most similar alone; high: to (of) all."
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        paired = self.select == "bipartite"
        if paired and (self.score not in _PAIRED or self.dropped != "merge"):
            raise ValueError("select bipartite goes with dropped merge and score mean_key or random")
        if self.score == "mean_key" and not paired:
            raise ValueError("score mean_key goes with select bipartite")
        if self.keep_norm and self.dropped not in ("merge", "fuse", "transform"):
            raise ValueError("keep_norm goes with dropped merge, fuse or transform")
        if self.score in ("cascade", "cls_sum") and self.dropped not in _SINGLE:
            raise ValueError(f"score {self.score} goes with dropped {', '.join(_SINGLE)}")
        return self
