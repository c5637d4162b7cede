"""The options of `width`: a file of their own, which the method and its parts both read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.passes.base import Options

Importance = Literal["obs", "cfsp", "act", "flap", "magnitude", "random"]


class WidthOptions(Options):
    """Options of `width`."""

    sparsity: float = Field(gt=0, lt=1, description="Share of the FFN's channels, and so of its parameters, to remove.")
    target: Literal["ffn"] = Field("ffn", description="What to narrow.")
    importance: Importance = Field(
        "obs", description="Which channels go: obs (least loss after refit; best), cfsp, act, flap, magnitude, random."
    )
    allocation: Literal["global", "cfsp", "uniform"] = Field(
        "global",
        description="How blocks share the loss: global (greedy on loss curves; best), cfsp (angular distance), or "
        "uniform, which alone keeps a plain config.json.",
    )
    weighting: Literal["fisher", "residual"] = Field(
        "fisher", description="global: weight of a block's loss: Fisher trace of its output, or 1 / residual energy."
    )
    temperature: float = Field(1.0, gt=0, description="cfsp allocation: high values approach uniform.")
    reconstruct: bool = Field(True, description="Refit the FFN's output matrix to the dense block's output.")
    refit: bool = Field(True, description="With reconstruct: also refit attention's output matrix and the readers.")
    refine: bool = Field(True, description="With reconstruct: also refit the rows of the FFN's readers that are left.")
    damping: float = Field(0.003, gt=0, le=1, description="Ridge of the refit, share of the mean second moment.")
    round_to: int = Field(8, ge=1, description="Widths are multiples of this.")
    least: float = Field(0.05, ge=0, lt=1, description="Share of its channels that every block keeps at least.")
    tokens_per_channel: int = Field(
        24,
        ge=1,
        description="Statistics use an evenly spread part of the calibration data: about this many tokens per channel.",
    )
    seed: int = Field(0, description="Of random importance and of sampled labels.")


class CutOptions(Options):
    """Options of `width` that its presets leave to the user."""

    sparsity: float = Field(gt=0, lt=1, description="Share of the FFN's channels, and so of its parameters, to remove.")
    reconstruct: bool = Field(True, description="Refit what is left by least squares; false is the plain cut.")
    round_to: int = Field(8, ge=1, description="Widths are multiples of this.")
