"""Llama and the families built like it: Mistral, Qwen2 (biases on q, k, v) and Qwen3 (norms on q and k)."""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.family import Attention, Family, FeedForward, Setting, Slot

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    tasks=("text-generation",),
    blocks="layers",
    embeddings=("embed_tokens",),
    final_norm="norm",
    heads=("lm_head",),
    attention=Attention(
        norm="input_layernorm",
        module="self_attn",
        query=Slot("self_attn.q_proj"),
        key=Slot("self_attn.k_proj"),
        value=Slot("self_attn.v_proj"),
        output="self_attn.o_proj",
    ),
    ffn=FeedForward(
        norm="post_attention_layernorm",
        readers=(Slot("mlp.gate_proj"), Slot("mlp.up_proj")),
        writer="mlp.down_proj",
        module="mlp",
    ),
    settings=(Setting("is_causal", True, "attention that looks at later tokens too; decoders are covered"),),
)
MISTRAL = replace(LLAMA, name="mistral", model_types=("mistral",))
QWEN2 = replace(LLAMA, name="qwen2", model_types=("qwen2",))
QWEN3 = replace(LLAMA, name="qwen3", model_types=("qwen3",))
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)
