"""BERT and MiniLM: an encoder whose norms stand after the residual sums."""

from __future__ import annotations

from compressor.architectures.family import Attention, Family, FeedForward, Setting, Slot

BERT = Family(
    name="bert",
    model_types=("bert",),
    tasks=("feature-extraction", "text-classification"),
    blocks="encoder.layer",
    embeddings=("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings"),
    final_norm=None,
    heads=(),
    attention=Attention(
        norm="attention.output.LayerNorm",
        module="attention",
        query=Slot("attention.self.query"),
        key=Slot("attention.self.key"),
        value=Slot("attention.self.value"),
        output="attention.output.dense",
    ),
    ffn=FeedForward(
        norm="output.LayerNorm",
        readers=(Slot("intermediate.dense"),),
        writer="output.dense",
        module=None,
        activation="intermediate.intermediate_act_fn",
    ),
    norm="layer",
    residual="post",
    explicit_head_dim=False,
    optional=("pooler",),
    head_count_attributes=("num_attention_heads", None),
    settings=(
        Setting("is_decoder", False, "attention that looks at earlier tokens only; encoders are covered"),
        Setting("add_cross_attention", False, "attention to the output of another model"),
    ),
)
FAMILIES = (BERT,)
