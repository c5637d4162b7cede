"""DINOv2, with and without registers: layer scale behind both halves, positions resampled to the size of the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compressor.architectures.family import Attention, Family, FeedForward, Slot

DINOV2 = Family(
    name="dinov2",
    model_types=("dinov2",),
    tasks=("feature-extraction", "image-classification"),
    blocks="encoder.layer",
    embeddings=("embeddings.patch_embeddings.projection",),
    embedding_biases=("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.mask_token"),
    final_norm="layernorm",
    heads=("classifier",),
    attention=Attention(
        norm="norm1",
        module="attention",
        query=Slot("attention.q_proj"),
        key=Slot("attention.k_proj"),
        value=Slot("attention.v_proj"),
        output="attention.o_proj",
        scale="layer_scale1.lambda1",
    ),
    ffn=FeedForward(
        norm="norm2",
        readers=(Slot("mlp.fc1"),),
        writer="mlp.fc2",
        module="mlp",
        scale="layer_scale2.lambda1",
    ),
    norm="layer",
    explicit_head_dim=False,
    head_reads=2,
    leading_tokens=1,
    inputs="pixels",
    pooled=("pooler_output",),
    positions="embeddings.position_embeddings",
)
WITH_REGISTERS = replace(
    DINOV2,
    name="dinov2_with_registers",
    model_types=("dinov2_with_registers",),
    embedding_biases=(*DINOV2.embedding_biases, "embeddings.register_tokens"),
)
FAMILIES = (DINOV2, WITH_REGISTERS)


def as_configured(family: Family, config: Any) -> Family:
    """Return the table of a model as its config.json has it: width and kind of the FFN, number of registers."""
    width = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:
        width = (int(width * 2 / 3) + 7) // 8 * 8
        readers = (Slot("mlp.gate_proj"), Slot("mlp.up_proj"))
        family = replace(family, ffn=replace(family.ffn, readers=readers, writer="mlp.down_proj"))
    return replace(family, ffn_width=width, leading_tokens=1 + int(getattr(config, "num_register_tokens", 0)))
