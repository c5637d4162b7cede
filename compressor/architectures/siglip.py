"""SigLIP: the two encoders of a model that is trained with a sigmoid loss; here each by itself.

The image tower has no class token: a head of its own pools the patches with one attention query. The text tower reads
padding like any token, as it was trained, and its embedding comes from the last place.
"""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.clip import CLIP_TEXT, CLIP_VISION

SIGLIP_VISION = replace(
    CLIP_VISION,
    name="siglip_vision",
    model_types=("siglip_vision_model",),
    embedding_biases=(),
    heads=(),
    leading_tokens=0,
    pooled=("pooler_output",),
    bodies=(),
)
SIGLIP_TEXT = replace(
    CLIP_TEXT,
    name="siglip_text",
    model_types=("siglip_text_model",),
    heads=("head",),
    pooled=("pooler_output",),
    bodies=("SiglipTextModel",),  # AutoModel knows no class for it
    full_length=True,
)
FAMILIES = (SIGLIP_VISION, SIGLIP_TEXT)
