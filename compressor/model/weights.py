"""Weights into modules and out of them again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.errors import ModelError
from compressor.storage.tensors import Checkpoint


def materialise(
    module: nn.Module,
    weights: Checkpoint,
    *,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    skip: Iterable[str] = (),
) -> None:
    """Read the tensors of `module`, known in the checkpoint under `prefix`, into its parameters, in place.

    Tensors under a path in `skip` stay as they are. A tied head receives the embedding's parameter.

    Raises:
        ModelError: a tensor cannot be read or holds NaN or infinity.
    """
    skipped = tuple(skip)
    for path, child in list(module.named_modules()):
        if any(path == s or path.startswith(s + ".") for s in skipped):
            continue
        for name, old in list(child.named_parameters(recurse=False)):
            full = f"{prefix}{path}.{name}" if path else f"{prefix}{name}"
            if full not in weights:
                continue
            tensor = weights.tensor(full).to(device=device, dtype=dtype)
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"tensor {full} holds NaN or infinite values", hint="The checkpoint is damaged.")
            child.register_parameter(name, nn.Parameter(tensor, requires_grad=old.requires_grad))
    if isinstance(module, PreTrainedModel):
        _tie(module)


def _tie(model: PreTrainedModel) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight.is_meta and not embedding.weight.is_meta:
        head.weight = embedding.weight


def release(module: nn.Module) -> None:
    """Drop the weights of a module: its parameters go back to the meta device."""
    for child in module.modules():
        for name, old in list(child.named_parameters(recurse=False)):
            child.register_parameter(name, nn.Parameter(old.data.to("meta"), requires_grad=False))
