"""Token-level correlation: regions that repeat themselves hand less on (arXiv 2407.14439).

Two patches of a region are alike if the cosine of their keys, averaged over heads, is at least `alike`. The share of
pairs that are not alike is the region's information density, which times its patches is its share of all that go on. In
each region these are the ones that the class token attends to most.
"""

from __future__ import annotations

from pydantic import Field

from compressor.passes.preset import Preset
from compressor.passes.tokens.visual_tokens import RegionOptions, VisualTokens


class CorrelationOptions(RegionOptions):
    """Options of `correlation`."""

    alike: float = Field(0.7, gt=0, lt=1, description="From which cosine of keys on two patches are alike.")


METHOD = Preset(
    "correlation",
    of=VisualTokens,
    Options=CorrelationOptions,
    fixed={"score": "cls_attn", "select": "regions", "quota": "density"},
    summary="Hand image tokens on, fewer of regions that repeat themselves.",
    paper="arXiv 2407.14439",
)
