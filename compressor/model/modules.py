"""Where the parts of a transformers model are, and how a module gets another weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def base_of(model: PreTrainedModel) -> nn.Module:
    """Return the model below the task head (the model itself where there is no head)."""
    base = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    return base if isinstance(base, nn.Module) else model


def base_prefix(model: PreTrainedModel) -> str:
    """Return the name that `base_of(model)` has in the model, with a dot, or an empty string."""
    return "" if base_of(model) is model else f"{model.base_model_prefix}."


def submodule(root: nn.Module, path: str) -> Any:
    """Return the submodule at a dotted path."""
    return root.get_submodule(path)


def optional_submodules(root: nn.Module, paths: tuple[str, ...]) -> list[nn.Module]:
    """Return those of `paths` that exist in `root`."""
    names = {name for name, _ in root.named_modules()}
    return [root.get_submodule(path) for path in paths if path in names]


def set_vector(root: nn.Module, path: str, value: torch.Tensor) -> None:
    """Put a vector in the place of the parameter at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, nn.Parameter(value, requires_grad=False))


def set_weight(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Give a linear, embedding, convolution or norm module a new weight, and bring its size attributes in line.

    A bias of None leaves the bias as it is.
    """
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)
