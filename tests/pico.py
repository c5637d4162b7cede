"""Pico-models: tiny random checkpoints in the Hugging Face layout, built locally and seeded, one per model family.

They are shaped to catch mistakes: grouped-query attention where the family has it, `head_dim` different from
hidden / heads where the config can say so, tied embeddings in some, biases that are not zero, norm weights that are not
one, an odd intermediate size. Weights are scaled by their fan-in, so that signals neither vanish nor explode and every
neuron matters.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

VOCAB = 320
IMAGE = 32

_ROPE_DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_VISION = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": IMAGE,
    "patch_size": 8,
    "num_labels": 10,
}

_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_DINO = {
    **{key: value for key, value in _VISION.items() if key != "intermediate_size"},
    "mlp_ratio": 2,
    "layerscale_value": 0.5,
}

# family -> (model class, kind of tokenizer or processor, config)
FAMILIES: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType(
    {
        "llama": ("LlamaForCausalLM", "bpe", {**_ROPE_DECODER, "head_dim": 8, "tie_word_embeddings": True}),
        "mistral": ("MistralForCausalLM", "bpe", {**_ROPE_DECODER, "head_dim": 16, "sliding_window": None}),
        "qwen2": ("Qwen2ForCausalLM", "bpe", {**_ROPE_DECODER, "tie_word_embeddings": False}),
        "qwen3": ("Qwen3ForCausalLM", "bpe", {**_ROPE_DECODER, "head_dim": 16, "tie_word_embeddings": True}),
        "gemma": ("GemmaForCausalLM", "bpe", {**_ROPE_DECODER, "head_dim": 16}),
        "phi3": ("Phi3ForCausalLM", "bpe", dict(_ROPE_DECODER)),
        "opt": (
            "OPTForCausalLM",
            "bpe",
            {
                "vocab_size": VOCAB,
                "hidden_size": 48,
                "word_embed_proj_dim": 48,
                "ffn_dim": 100,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "max_position_embeddings": 256,
                "dropout": 0.0,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": 1,
            },
        ),
        "gpt2": (
            "GPT2LMHeadModel",
            "bpe",
            {
                "vocab_size": VOCAB,
                "n_embd": 48,
                "n_inner": 100,
                "n_layer": 3,
                "n_head": 4,
                "n_positions": 256,
                "bos_token_id": 0,
                "eos_token_id": 1,
            },
        ),
        "gpt_neox": (
            "GPTNeoXForCausalLM",
            "bpe",
            {
                **{k: v for k, v in _ROPE_DECODER.items() if k != "num_key_value_heads"},
                "hidden_size": 64,
                "num_attention_heads": 4,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            },
        ),
        "bert": (
            "BertModel",
            "wordpiece",
            {
                "vocab_size": VOCAB,
                "hidden_size": 48,
                "intermediate_size": 100,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "max_position_embeddings": 128,
            },
        ),
        "vit": ("ViTForImageClassification", "image", dict(_VISION)),
        "deit": ("DeiTForImageClassificationWithTeacher", "image", dict(_VISION)),
        "clip_vision_model": (
            "CLIPVisionModel",
            "image",
            {**{k: v for k, v in _VISION.items() if k != "num_labels"}, "projection_dim": 32},
        ),
        "clip_text_model": ("CLIPTextModel", "clip-text", {**_TEXT, "projection_dim": 32}),
        "siglip_vision_model": ("SiglipVisionModel", "image", {k: v for k, v in _VISION.items() if k != "num_labels"}),
        "siglip_text_model": ("SiglipTextModel", "clip-text", {**_TEXT, "projection_size": 32}),
        "llava_vision": (
            "LlavaVisionEncoder",
            "image",
            {**{k: v for k, v in _VISION.items() if k != "num_labels"}, "projection_size": 40},
        ),
        "llava": (
            "LlavaForConditionalGeneration",
            "llava",
            {
                "text_config": {
                    "model_type": "llama",
                    **_ROPE_DECODER,
                    "hidden_size": 40,
                    "num_hidden_layers": 2,
                    "head_dim": 8,
                    "num_attention_heads": 4,
                    "vocab_size": VOCAB + 8,
                    "tie_word_embeddings": False,
                },
                "vision_config": {
                    "model_type": "clip_vision_model",
                    **{k: v for k, v in _VISION.items() if k != "num_labels"},
                    "num_hidden_layers": 4,
                },
                "image_token_index": VOCAB,
                "image_seq_length": 16,
            },
        ),
        "dinov2": ("Dinov2ForImageClassification", "image", dict(_DINO)),
        "dinov2_with_registers": ("Dinov2WithRegistersModel", "image", {**_DINO, "num_register_tokens": 3}),
        "siglip": (
            "SiglipModel",
            "clip",
            {
                "text_config": {**_TEXT, "num_hidden_layers": 2, "projection_size": 48},
                "vision_config": {k: v for k, v in _VISION.items() if k != "num_labels"},
            },
        ),
        "clip": (
            "CLIPModel",
            "clip",
            {
                "projection_dim": 32,
                "text_config": {**_TEXT, "num_hidden_layers": 2},
                "vision_config": {k: v for k, v in _VISION.items() if k != "num_labels"},
            },
        ),
    }
)


def make_pico(family: str, folder: Path, *, seed: int = 0, architecture: str | None = None, **overrides: Any) -> Path:
    """Write a pico-model of `family` into `folder` and return the folder.

    Args:
        family: a key of `FAMILIES`.
        folder: is created when it is not there.
        seed: of the weights; the same seed gives the same bytes.
        architecture: another transformers class of the family, such as `BertForSequenceClassification`.
        **overrides: config entries, such as `num_hidden_layers=2` or `dtype="bfloat16"` (the stored weights' type).
    """
    import torch

    class_name, kind, defaults = FAMILIES[family]
    model_class = class_named(architecture or class_name)
    dtype = getattr(torch, overrides.pop("dtype", "float32"))
    config = model_class.config_class(**{**defaults, **overrides})
    model = model_class(config).eval()
    randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder)
    if kind == "llava":
        write_llava_processor(folder, defaults["vision_config"]["patch_size"])
    if kind in ("bpe", "wordpiece", "clip-text", "clip"):
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 64)
        write_tokenizer(folder, "clip-text" if kind == "clip" else kind, limit)
    if kind in ("image", "clip", "llava"):
        write_processor(folder, "DeiTImageProcessor" if family == "deit" else "ViTImageProcessor")
    return folder


def class_named(name: str) -> Any:
    """Return a class of transformers, or one of ours for what it has no class for."""
    import transformers

    from compressor.model import llava_vision

    return getattr(transformers, name, None) or getattr(llava_vision, name)


def randomize(model: Any, seed: int) -> None:
    """Fill the parameters, in the order of their names: matrices by fan-in, norms around one, small biases."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    convolutions = {f"{n}.weight" for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    # Gemma's norm multiplies by (1 + weight): its neutral weight is zero.
    centre = 0.0 if model.config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                value = 0.1 * noise
            elif parameter.dim() <= 1:
                value = centre + 0.2 * noise
            elif "embed" in name.lower() or "wte" in name or "wpe" in name or "token" in name:
                value = 0.5 * noise
            else:
                fan_in = parameter.shape[0] if name in convolutions else parameter[0].numel()
                value = noise / fan_in**0.5
            parameter.copy_(value)


def write_tokenizer(folder: Path, kind: str, limit: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of the wanted kind (`bpe` | `wordpiece` | `clip-text`)."""
    state, special = _tokenizer_state(kind)
    (folder / "tokenizer.json").write_text(state, encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": limit, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def write_processor(folder: Path, name: str) -> None:
    """Write preprocessor_config.json for images of `IMAGE` pixels."""
    settings = {
        "image_processor_type": name,
        "do_resize": True,
        "size": {"height": IMAGE, "width": IMAGE},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def write_llava_processor(folder: Path, patch: int) -> None:
    """Write a tokenizer with a token for images, and processor_config.json."""
    from tokenizers import Tokenizer

    state, special = _tokenizer_state("bpe")
    tokenizer = Tokenizer.from_str(state)
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")


def sample_text(sentences: int = 400, seed: int = 0) -> str:
    """Return plain English-like text, for calibration files: about 40 characters a sentence."""
    import random

    rng = random.Random(seed)
    subjects = ["the miller", "a grey cat", "our captain", "the old clock", "her brother", "a quiet river"]
    verbs = ["found", "carried", "painted", "forgot", "counted", "sold"]
    objects = ["seven apples", "the green door", "a broken wheel", "two letters", "some honey", "the last candle"]
    places = ["by the harbour", "near the mill", "in the garden", "on the bridge", "at noon", "before winter"]
    lines = (" ".join(rng.choice(part) for part in (subjects, verbs, objects, places)) for _ in range(sentences))
    return "\n".join(f"{line.capitalize()}." for line in lines) + "\n"


@functools.cache
def _tokenizer_state(kind: str) -> tuple[str, dict[str, str]]:
    """Train the tokenizer once per process; return its JSON and the names of its special tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    lines = sample_text().splitlines()
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        alphabet = [chr(c) for c in range(33, 127)]
        trainer: Any = trainers.WordPieceTrainer(
            vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(lines, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {f"{key}_token": f"[{key.upper()}]" for key in ("pad", "unk", "cls", "sep", "mask")}
        return tokenizer.to_str(), names
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    if kind == "clip-text":
        ends = [("<s>", 0), ("</s>", 1)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer.to_str(), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
