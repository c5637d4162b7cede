"""CLIP: an image tower and a text tower, each a pre-norm encoder; here each by itself."""

from __future__ import annotations

from compressor.architectures.family import Attention, Family, FeedForward, Slot

ATTENTION = Attention(
    norm="layer_norm1",
    module="self_attn",
    query=Slot("self_attn.q_proj"),
    key=Slot("self_attn.k_proj"),
    value=Slot("self_attn.v_proj"),
    output="self_attn.out_proj",
)
FEED_FORWARD = FeedForward(norm="layer_norm2", readers=(Slot("mlp.fc1"),), writer="mlp.fc2", module="mlp")

CLIP_VISION = Family(
    name="clip_vision",
    model_types=("clip_vision_model",),
    tasks=("feature-extraction",),
    blocks="encoder.layers",
    embeddings=("embeddings.patch_embedding", "embeddings.position_embedding"),
    embedding_biases=("embeddings.class_embedding",),
    final_norm="post_layernorm",
    heads=("visual_projection",),
    attention=ATTENTION,
    ffn=FEED_FORWARD,
    norm="layer",
    explicit_head_dim=False,
    leading_tokens=1,
    inputs="pixels",
    pooled=("image_embeds", "pooler_output"),
    bodies=("CLIPVisionModelWithProjection",),
)
FAMILIES = (CLIP_VISION,)
