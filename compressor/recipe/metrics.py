"""What is measured of an artifact: one table of the quality metrics, and one of what `verify` may bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A quality metric. Which data allow it for which task is stated in `compressor.architectures.tasks`.

    Attributes:
        label: name for people.
        better: which direction is an improvement.
        change: how a change from the dense model is stated: as a percentage of it, in points of a share, as a plain
            difference, or not at all because the metric is itself a comparison with the dense model.
        share: whether values are shares of 1, shown in percent.
        unit: unit behind the value.
        meaning: one line for readers who do not know the metric.
        ideal: the value that an artifact equal to the dense model has, for metrics that compare with it.
        brings: metrics that are reported beside it, unasked.
    """

    label: str
    better: Literal["lower", "higher"]
    change: Literal["relative", "points", "difference", "none"]
    share: bool = False
    unit: str = ""
    meaning: str = ""
    ideal: float | None = None
    brings: tuple[str, ...] = ()

    @property
    def relative(self) -> bool:
        """Whether it compares with the dense model, which then has no value of its own for it."""
        return self.ideal is not None


METRICS: dict[str, Metric] = {
    "perplexity": Metric("perplexity", "lower", "relative", meaning="how surprised the model is by held-out text"),
    "kl": Metric("KL to dense", "lower", "none", unit="nats", meaning="distance of the predictions", ideal=0.0),
    "top1": Metric("top-1 agreement", "higher", "none", share=True, meaning="same best answer as dense", ideal=1.0),
    "greedy": Metric(
        "same answers as dense", "higher", "none", share=True, meaning="greedy answers equal to dense's", ideal=1.0
    ),
    "cosine": Metric(
        "cosine to dense",
        "higher",
        "none",
        meaning="mean similarity of the embeddings",
        ideal=1.0,
        brings=("cosine_min",),
    ),
    "cosine_min": Metric("cosine, worst", "higher", "none", meaning="similarity of the worst embedding", ideal=1.0),
    "cosine_vision": Metric(
        "cosine to dense, images", "higher", "none", meaning="mean similarity of the images' embeddings", ideal=1.0
    ),
    "cosine_text": Metric(
        "cosine to dense, texts", "higher", "none", meaning="mean similarity of the texts' embeddings", ideal=1.0
    ),
    "spearman": Metric("Spearman", "higher", "difference", meaning="rank correlation with the scores of the data"),
    "pearson": Metric("Pearson", "higher", "difference", meaning="linear correlation with the scores of the data"),
    "rank": Metric(
        "rank correlation to dense", "higher", "none", meaning="same order of the samples as dense", ideal=1.0
    ),
    "relative_error": Metric(
        "error to dense", "lower", "none", meaning="difference from dense over the spread of dense's outputs", ideal=0.0
    ),
    "accuracy": Metric("accuracy", "higher", "points", share=True, meaning="share of the labels predicted"),
    "f1": Metric("F1", "higher", "points", share=True, meaning="labels found and right, of all samples together"),
}
"""All metrics, in the order in which they are reported."""


@dataclass(frozen=True)
class Bounded:
    """A value that `verify` may bound.

    Attributes:
        low: the least value that it can have.
        high: the largest.
        text: what it is, for the schema.
        metric: the metric that it follows from, for what is measured on evaluation data.
        change: how it follows from the metric of ours and of the dense model: ours over dense, minus 1 (`increase`), or
            dense minus ours (`drop`); None for the metric itself.
        phase: the timed phase that it is about.
        unit: unit of the value.
    """

    low: float
    high: float
    text: str
    metric: str | None = None
    change: Literal["increase", "drop"] | None = None
    phase: str | None = None
    unit: str = ""

    def value(self, ours: float, dense: float) -> float:
        """Return it for the two values of its metric."""
        return dense - ours if self.change == "drop" else ours / dense - 1.0


BOUNDS: dict[str, Bounded] = {
    "perplexity": Bounded(1, math.inf, "Perplexity of the artifact.", "perplexity"),
    "perplexity_increase": Bounded(
        -1,
        math.inf,
        "Perplexity over that of the dense model, minus 1: 0.15 is 15 % worse.",
        "perplexity",
        "increase",
    ),
    "kl": Bounded(
        0,
        math.inf,
        "Mean KL divergence from the dense model, nats per token (per sample for classes, per label for several).",
        "kl",
    ),
    "top1": Bounded(0, 1, "Share of most likely tokens or classes equal to the dense model's.", "top1"),
    "greedy": Bounded(0, 1, "Share of questions to which the artifact's greedy answer is the dense model's.", "greedy"),
    "cosine": Bounded(-1, 1, "Mean cosine of embeddings with the dense model's.", "cosine"),
    "cosine_min": Bounded(-1, 1, "Smallest cosine of an embedding with the dense model's.", "cosine_min"),
    "cosine_vision": Bounded(-1, 1, "Mean cosine of the images' embeddings with the dense model's.", "cosine_vision"),
    "cosine_text": Bounded(-1, 1, "Mean cosine of the texts' embeddings with the dense model's.", "cosine_text"),
    "spearman": Bounded(-1, 1, "Rank correlation of similarities or outputs with the scores of the data.", "spearman"),
    "spearman_drop": Bounded(-2, 2, "Spearman of the dense model minus ours.", "spearman", "drop"),
    "pearson": Bounded(-1, 1, "Linear correlation of outputs with the scores of the data.", "pearson"),
    "pearson_drop": Bounded(-2, 2, "Pearson of the dense model minus ours.", "pearson", "drop"),
    "rank": Bounded(-1, 1, "Rank correlation of outputs with the dense model's, over samples.", "rank"),
    "relative_error": Bounded(
        0,
        math.inf,
        "Root mean square difference from the dense model over the spread of its outputs.",
        "relative_error",
    ),
    "accuracy": Bounded(0, 1, "Share of right classes or answers.", "accuracy"),
    "accuracy_drop": Bounded(-1, 1, "Accuracy of the dense model minus ours, as a share of 1.", "accuracy", "drop"),
    "f1": Bounded(0, 1, "F1 of all labels and samples together (micro); a label holds at a sigmoid of 0.5.", "f1"),
    "f1_drop": Bounded(-1, 1, "F1 of the dense model minus ours, as a share of 1.", "f1", "drop"),
    "size_ratio": Bounded(0, math.inf, "Bytes of the model files over those of the dense export."),
    "parameters_ratio": Bounded(0, math.inf, "Parameters over the dense model's."),
    "flops_ratio": Bounded(0, math.inf, "Theoretical operations over the dense model's."),
    "kept_tokens": Bounded(0, 1, "Share of the tokens of an image that leave a block, mean over all blocks."),
    "memory_ratio": Bounded(0, math.inf, "Peak memory of loading and running over the dense export's."),
    "speedup": Bounded(0, math.inf, "Smallest measured speed-up over the dense export of all phases, batch 1."),
    "speedup_prefill": Bounded(0, math.inf, "Measured speed-up of reading a prompt (decoders).", phase="prefill"),
    "speedup_decode": Bounded(0, math.inf, "Measured speed-up of generating one token (decoders).", phase="decode"),
    "speedup_forward": Bounded(
        0, math.inf, "Measured speed-up of the forward pass (encoders, image models).", phase="forward"
    ),
    "speedup_vision": Bounded(
        0, math.inf, "Measured speed-up of the image tower (models of two towers).", phase="vision"
    ),
    "speedup_text": Bounded(0, math.inf, "Measured speed-up of the text tower (models of two towers).", phase="text"),
    "latency_prefill_ms": Bounded(0, math.inf, "Median milliseconds of reading a prompt.", phase="prefill", unit="ms"),
    "latency_decode_ms": Bounded(
        0, math.inf, "Median milliseconds of generating one token.", phase="decode", unit="ms"
    ),
    "latency_forward_ms": Bounded(0, math.inf, "Median milliseconds of the forward pass.", phase="forward", unit="ms"),
    "latency_vision_ms": Bounded(0, math.inf, "Median milliseconds of the image tower.", phase="vision", unit="ms"),
    "latency_text_ms": Bounded(0, math.inf, "Median milliseconds of the text tower.", phase="text", unit="ms"),
    "bytes": Bounded(0, math.inf, "Bytes of the model files.", unit="bytes"),
}
"""What `verify` may bound, by name."""


@dataclass(frozen=True)
class Gate:
    """A judgement that every artifact must pass, unless the recipe gives another bound under `verify` or says false.

    Attributes:
        text: what it asks, for the schema.
        limits: the default bound; None for a plain yes or no.
        low: the least value that it can have.
        high: the largest.
        metric: the metric that it follows from; None where it needs none.
    """

    text: str
    limits: Mapping[str, float] | None = None
    low: float = 0.0
    high: float = 1.0
    metric: str | None = None


_HALF = "; by default at least half of the dense model's."
_FLOOR = " of any artifact, where the recipe does not bound it by itself: far below any useful model."
_WEIGHTS = " that quantized weights alone may cost, where the recipe bounds no quality."

GATES: dict[str, Gate] = {
    "quality.finite": Gate("Outputs on the evaluation data are numbers, not NaN or infinity."),
    "quality.varies": Gate("Outputs depend on the input."),
    "quality.entropy": Gate("Entropy of the predictions over that of a blind guess.", {"max": 0.9999}),
    "quality.accuracy": Gate("Share of right classes" + _HALF, {}, metric="accuracy"),
    "quality.f1": Gate("F1 of the labels" + _HALF, {}, metric="f1"),
    "quality.perplexity_increase": Gate("Increase of perplexity" + _FLOOR, {"max": 2.0}, -1, math.inf, "perplexity"),
    "quality.top1": Gate("Agreement with the dense model" + _FLOOR, {"min": 0.3}, metric="top1"),
    "quality.cosine": Gate("Mean cosine" + _FLOOR, {"min": 0.7}, -1, metric="cosine"),
    "quality.rank": Gate("Rank correlation with the dense model" + _FLOOR, {"min": 0.7}, -1, metric="rank"),
    "quality.relative_error": Gate(
        "Error over the spread of dense" + _FLOOR, {"max": 1.0}, 0, math.inf, "relative_error"
    ),
    "quality.weight_only.perplexity_increase": Gate(
        "Increase of perplexity" + _WEIGHTS, {"max": 0.02}, -1, math.inf, "perplexity"
    ),
    "quality.weight_only.kl": Gate("KL divergence" + _WEIGHTS, {"max": 0.01}, 0, math.inf, "kl"),
    "quality.weight_only.top1": Gate("Agreement with the dense model" + _WEIGHTS, {"min": 0.93}, metric="top1"),
    "quality.weight_only.rank": Gate("Rank correlation with dense" + _WEIGHTS, {"min": 0.95}, -1, metric="rank"),
    "quality.weight_only.quantization_step": Gate(
        "Increase of perplexity by the quantize passes behind other passes, where the recipe bounds no quality.",
        {"max": 0.02},
        -1,
        math.inf,
        "perplexity",
    ),
    "gain.dominated": Gate("Not slower, worse and no smaller than the dense export, all at once."),
    "gain.effect": Gate("Smaller or faster than the dense export."),
}
"""What is judged without being asked, by the name that a failed check has.

4-bit weights in groups of 32 were seen to raise perplexity by 0.002 to 0.007 of it, to cost 0.0015 to 0.0042 nats, and
to agree with dense at 0.951 to 0.973.
"""
