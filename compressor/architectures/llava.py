"""LLaVA: CLIP's image tower and a projector, whose features take the places of image tokens in a language model."""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.clip import CLIP_VISION

LLAVA_VISION = replace(
    CLIP_VISION,
    name="llava_vision",
    model_types=("llava_vision",),
    final_norm=None,
    heads=("multi_modal_projector.linear_1",),
    pooled=(),
    bodies=("LlavaVisionEncoder",),
    output="image_features",
    own=True,
    selector="select_tokens",
    feature_selector="select_features",
)
FAMILIES = (LLAVA_VISION,)
