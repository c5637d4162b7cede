"""Tensors of a checkpoint that no module takes: harmless ones, and what the others say about the checkpoint.

Stock transformers warns of such tensors and goes on without them. A trained one that is left out changes what the model
computes, so here it is an error that names the tensor and, where it can be told, the cause.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from transformers import PreTrainedModel

from compressor.errors import ModelError
from compressor.storage.tensors import Entry

_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"(^|\.)token_type_ids$", r"\.masked_bias$")
"""Constants that earlier releases of transformers stored and newer ones compute."""
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "a training framework",
    "module.": "DataParallel or DeepSpeed",
}
"""What wrappers put into the names of parameters, and who does."""
_CODES = {
    r"\.absmax$|\.quant_map$|\.quant_state\.|\.SCB$": "bitsandbytes",
    r"\.g_idx$": "GPTQ",
    r"\.qweight$|\.qzeros$": "AWQ or GPTQ",
    r"\.weight_scale_inv$": "FP8 in blocks",
    r"\.weight_packed$|\.weight_scale$": "compressed-tensors",
    r"\.(W_q|W_nbits)$": "HQQ",
}
"""Names that only quantized checkpoints have."""
_TRIED = 16
"""Names that are looked at for a common prefix."""


def is_harmless(model: PreTrainedModel, name: str) -> bool:
    """Tell whether a tensor may be left out: a constant that modules compute themselves, or one that stock ignores."""
    patterns = (*_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ()))
    return any(re.search(pattern, name) for pattern in patterns)


def check_leftovers(model: PreTrainedModel, left: Collection[Entry], missing: Collection[str]) -> None:
    """See that nothing trained is left over, and say why tensors are missing where what is left over tells it.

    Args:
        model: the skeleton.
        left: entries that it has no place for.
        missing: names of the skeleton for which there is no entry.

    Raises:
        ModelError: with the cause, or with the names of the tensors.
    """
    trained = [entry for entry in left if not is_harmless(model, entry.stored)]
    if not trained:
        return
    names = [entry.stored for entry in trained]
    _check_codes(names)
    if any(".lora_" in name or ".base_layer." in name for name in names):
        raise ModelError(
            f"the checkpoint holds a LoRA adapter that is not merged into its weights: {names[0]}",
            hint="Load it with peft, call merge_and_unload(), and save_pretrained the result.",
        )
    if missing:
        _check_prefix(names, missing)
        return  # what is missing is said by `check_entries`
    kind = type(model).__name__
    raise ModelError(
        f"{trained[0].file.name}: {len(names)} tensors are taken by no module of {kind} as config.json describes it:"
        f" {', '.join(names[:4])}{', …' if names[4:] else ''}",
        hint="Stock transformers would leave them out. Take the config.json that belongs to these weights (a key such"
        " as attention_bias announces biases), or remove the tensors if they are no part of the model.",
    )


def _check_codes(names: Collection[str]) -> None:
    for pattern, kind in _CODES.items():
        if found := next((name for name in names if re.search(pattern, name)), None):
            raise ModelError(
                f"the checkpoint is quantized ({kind}): it holds {found}",
                hint="Give the model that it was made from, in 16 or 32 bits.",
            )


def _check_prefix(names: Collection[str], missing: Collection[str]) -> None:
    """Say so where the missing names seem to be there, with something in or before them."""
    for wrapper, origin in _WRAPPERS.items():
        found = next((name for name in names if f".{wrapper}" in f".{name}"), None)
        if found is not None:
            raise ModelError(
                f"tensor names carry {wrapper!r}, which {origin} puts into them: {found}", hint=_rename(wrapper)
            )
    for name in list(names)[:_TRIED]:
        inner = next((want for want in missing if name.endswith(f".{want}")), None)
        if inner is not None:
            prefix = name.removesuffix(inner)
            raise ModelError(
                f"tensor names begin with {prefix!r}, which the model's do not: {name}", hint=_rename(prefix)
            )


def _rename(part: str) -> str:
    return (
        "Save the unwrapped model, or rename the tensors: from safetensors.torch import load_file, save_file;"
        f' save_file({{k.replace("{part}", ""): v for k, v in load_file(F).items()}}, F, metadata={{"format": "pt"}})'
    )
