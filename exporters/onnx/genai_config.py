"""`genai_config.json`: what onnxruntime-genai needs to run a decoder, laid out as its own builder does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compressor.storage.artifact import ONNX_MODEL
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json

NAME = "genai_config.json"
# "llama" is what the runtime calls any decoder with this set of inputs.
_TYPE = "llama"
_SEARCH: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": True,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}


def write_genai_config(source: Path, config: Any, model: ir.Model, out: Path) -> Path:
    """Write the file for a decoder graph.

    Args:
        source: folder of the original model; its generation_config.json overrides the special tokens.
        config: the model's transformers config.
        model: the exported graph; heads and head size are those of its first cache input.
        out: folder of the graph.

    Returns:
        The file written.
    """
    ports = {str(value.name): _sizes(value) for value in model.graph.inputs}
    path = out / NAME
    document = genai_document(source, config, ports)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def _sizes(value: ir.Value) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in value.shape or ()]


def genai_document(source: Path, config: Any, ports: Mapping[str, Sequence[int | None]]) -> dict[str, Any]:
    """Return the contents of the file.

    Args:
        source: folder of config.json; its generation_config.json overrides the special tokens.
        config: the model's transformers config.
        ports: name -> sizes of the graph's inputs, outputs may be among them; None for a size that varies.
    """
    caches = [name for name in ports if name.startswith("past_key_values.")]
    _, heads, _, head_size = ports[caches[0]]
    portable = "position_ids" in ports
    tokens = _special_tokens(source, config)
    length = int(getattr(config, "max_position_embeddings", 2048))
    inputs = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in ports}
    return {
        "model": {
            "bos_token_id": tokens["bos_token_id"],
            "context_length": length,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": ONNX_MODEL,
                "head_size": head_size,
                "hidden_size": int(config.hidden_size),
                "inputs": {
                    **inputs,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": int(config.num_attention_heads),
                "num_hidden_layers": sum(name.endswith(".key") for name in caches),
                "num_key_value_heads": heads,
            },
            "eos_token_id": tokens["eos_token_id"],
            "pad_token_id": tokens["pad_token_id"],
            "type": _TYPE,
            "vocab_size": int(config.vocab_size),
        },
        # Joining past and present makes a new buffer each step; only GroupQueryAttention can share one.
        "search": {**_SEARCH, "max_length": length, "past_present_share_buffer": not portable},
    }


def _special_tokens(source: Path, config: Any) -> dict[str, Any]:
    """Return begin, end and padding token ids; the runtime wants numbers: the end token stands for missing ones."""
    file = own_file(source, "generation_config.json")
    stated = read_json(file) if file is not None else {}
    found = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = stated.get(name)
        found[name] = value if value is not None else getattr(config, name, None)
    end = found["eos_token_id"]
    one_end = (end[0] if end else 0) if isinstance(end, list) else end if end is not None else 0
    found["eos_token_id"] = one_end if end is None or end == [] else end
    for name in ("bos_token_id", "pad_token_id"):
        found[name] = one_end if found[name] is None else found[name]
    return found
