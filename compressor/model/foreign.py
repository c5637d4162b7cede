"""Folders that hold something else than the weights of a whole model in floats: adapters, and codes of other tools."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ModelError
from compressor.storage.grids import SECTION as GRIDS
from compressor.storage.json_files import read_json

ADAPTER = "adapter_config.json"
_QUANTIZED = ("quantization_config", "compression_config")
"""Keys of config.json by which transformers knows a checkpoint whose weights are codes."""
_NAMES = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "hqq": "HQQ", "mxfp4": "MXFP4"}


def refuse_adapter(folder: Path) -> None:
    """Raise ModelError where a folder holds an adapter of peft: with one, it is not the model that its weights are."""
    file = folder / ADAPTER
    if not file.is_file():
        return
    try:
        facts = read_json(file)
    except ModelError:
        facts = {}
    kind = str(facts.get("peft_type") or "LORA").replace("LORA", "LoRA")[:40]
    base = str(facts.get("base_model_name_or_path") or "its base model")[:200]
    install = "" if importlib.util.find_spec("peft") else "pip install peft, then "
    raise ModelError(
        f"{folder}: holds a {kind} adapter ({ADAPTER}) for {base}, not a whole model",
        hint=f"Merge it first: {install}in Python, from peft import AutoPeftModel (or AutoPeftModelForCausalLM, …);"
        f' AutoPeftModel.from_pretrained("{folder}").merge_and_unload().save_pretrained("merged"). Then give merged,'
        " with the tokenizer of the base model.",
    )


def refuse_foreign_codes(raw: Mapping[str, Any]) -> None:
    """Raise ModelError where config.json says that the weights are codes which another tool made."""
    for key in _QUANTIZED:
        if raw.get(key) is None or raw.get(GRIDS) is not None:
            continue
        stated = raw[key]
        method = str(stated.get("quant_method") or _bits_and_bytes(stated)) if isinstance(stated, dict) else ""
        what = f" with {_NAMES.get(method, method)[:40]}" if method else ""
        raise ModelError(
            f"config.json: {key} says that the checkpoint is quantized{what}; its weights are codes of another tool",
            hint="Give the model that it was made from, in 16 or 32 bits.",
        )


def _bits_and_bytes(stated: Mapping[str, Any]) -> str:
    return "bitsandbytes" if any(str(key).startswith(("load_in_", "bnb_")) for key in stated) else ""
