"""Vision transformers: ViT and DeiT."""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.family import Attention, Family, FeedForward, Slot

VIT = Family(
    name="vit",
    model_types=("vit",),
    tasks=("image-classification",),
    blocks="layers",
    embeddings=("embeddings.patch_embeddings.projection",),
    embedding_biases=("embeddings.cls_token", "embeddings.position_embeddings"),
    final_norm="layernorm",
    heads=("classifier",),
    attention=Attention(
        norm="layernorm_before",
        module="attention",
        query=Slot("attention.q_proj"),
        key=Slot("attention.k_proj"),
        value=Slot("attention.v_proj"),
        output="attention.o_proj",
    ),
    ffn=FeedForward(
        norm="layernorm_after",
        readers=(Slot("mlp.fc1"),),
        writer="mlp.fc2",
        module="mlp",
    ),
    norm="layer",
    explicit_head_dim=False,
    leading_tokens=1,
    inputs="pixels",
    positions="embeddings.position_embeddings",
)
DEIT = replace(
    VIT,
    name="deit",
    model_types=("deit",),
    embedding_biases=(*VIT.embedding_biases, "embeddings.distillation_token"),
    heads=("classifier", "cls_classifier", "distillation_classifier"),
    leading_tokens=2,
)
FAMILIES = (VIT, DEIT)
