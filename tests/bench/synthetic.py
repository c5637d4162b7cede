"""Llama checkpoints with seeded random weights in any shape, written tensor by tensor: for speed and memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Geometry:
    """Shapes of a Llama.

    Attributes:
        layers: number of blocks.
        hidden: width of the residual stream.
        ffn: FFN channels, of all blocks or of each.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: width of a head.
        vocabulary: tokens; at least as many as the packaged demo tokenizer has.
        positions: longest context.
    """

    layers: int
    hidden: int
    ffn: int | tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 2048
    positions: int = 2048

    @property
    def widths(self) -> tuple[int, ...]:
        """FFN channels of every block."""
        return (self.ffn,) * self.layers if isinstance(self.ffn, int) else tuple(self.ffn)

    @property
    def block_parameters(self) -> int:
        """Parameters of the widest block."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * max(self.widths) + 2 * self.hidden

    @property
    def outside_parameters(self) -> int:
        """Parameters of embedding, head and last norm."""
        return 2 * self.vocabulary * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        narrower = sum(max(self.widths) - width for width in self.widths) * 3 * self.hidden
        return self.layers * self.block_parameters - narrower + self.outside_parameters

    def decode_bytes(self, context: int) -> int:
        """Bytes that one decode step must read in fp32: every weight but the embedding table, and the cache."""
        cache = 2 * context * self.layers * self.kv_heads * self.head_dim
        return 4 * (self.parameters - self.vocabulary * self.hidden + self.hidden + cache)


def write_llama(folder: Path, shape: Geometry, seed: int = 0) -> Path:
    """Write a plain model folder with the tokenizer of the packaged demo model; weights differ from block to block.

    Memory holds one tensor at a time.
    """
    import torch

    from compressor.demo import MODEL_DIR
    from compressor.storage.tensors import Plan, write_safetensors

    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        if (MODEL_DIR / name).is_file():
            shutil.copyfile(MODEL_DIR / name, folder / name)
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=1), encoding="utf-8")

    def plan(number: int, name: str, size: tuple[int, ...]) -> Plan:
        def make() -> torch.Tensor:
            if len(size) == 1:
                return torch.ones(size)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            scale = 1.0 if "embed" in name else size[1] ** -0.5
            return torch.randn(size, generator=generator) * scale

        return Plan(name, "float32", size, make)

    write_safetensors(folder / "model.safetensors", [plan(i, *item) for i, item in enumerate(_tensors(shape))])
    return folder


def _tensors(shape: Geometry) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocabulary, hidden)
    yield "lm_head.weight", (shape.vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    for index, width in enumerate(shape.widths):
        block = f"model.layers.{index}"
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        yield f"{block}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{block}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{block}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{block}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{block}.mlp.gate_proj.weight", (width, hidden)
        yield f"{block}.mlp.up_proj.weight", (width, hidden)
        yield f"{block}.mlp.down_proj.weight", (hidden, width)


def _config(shape: Geometry) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": max(shape.widths),
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    if len(set(shape.widths)) > 1:
        config["compression"] = {
            "version": 1,
            "hidden_size": shape.hidden,
            "shortcuts": False,
            "layers": [{"intermediate_size": width} for width in shape.widths],
        }
    return config
