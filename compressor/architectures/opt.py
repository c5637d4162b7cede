"""OPT: LayerNorm, biases everywhere, learned positions, a plain FFN whose parts are children of the block."""

from __future__ import annotations

from compressor.architectures.family import Attention, Family, FeedForward, Slot

OPT = Family(
    name="opt",
    model_types=("opt",),
    tasks=("text-generation",),
    blocks="decoder.layers",
    embeddings=("decoder.embed_tokens", "decoder.embed_positions"),
    final_norm="decoder.final_layer_norm",
    heads=("lm_head",),
    attention=Attention(
        norm="self_attn_layer_norm",
        module="self_attn",
        query=Slot("self_attn.q_proj"),
        key=Slot("self_attn.k_proj"),
        value=Slot("self_attn.v_proj"),
        output="self_attn.out_proj",
    ),
    ffn=FeedForward(
        norm="final_layer_norm",
        readers=(Slot("fc1"),),
        writer="fc2",
        module=None,
        activation="activation_fn",
    ),
    norm="layer",
    explicit_head_dim=False,
    width_key="ffn_dim",
    activation_key="activation_function",
    head_count_attributes=("num_heads", None),
)
FAMILIES = (OPT,)
