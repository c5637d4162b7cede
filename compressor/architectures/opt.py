"""OPT: LayerNorm, biases everywhere, learned positions, a plain FFN whose parts are children of the block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compressor.architectures.family import Attention, Family, FeedForward, Setting, Slot

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
    settings=(Setting("is_causal", True, "attention that looks at later tokens too; decoders are covered"),),
)
FAMILIES = (OPT,)


def as_configured(family: Family, config: Any) -> Family:
    """Return the table of a model as its config.json has it: norms after the sums or none at the end, narrow tables."""
    if not config.do_layer_norm_before:
        family = replace(family, residual="post", final_norm=None)
    if config._remove_final_layer_norm:
        family = replace(family, final_norm=None)
    if config.word_embed_proj_dim != config.hidden_size:
        family = replace(family, embeddings=("decoder.project_in", "decoder.embed_positions"), projected=True)
    return family
