"""One tower of a stock model, run as the whole model runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compressor.architectures import Tower


class StockTower(nn.Module):
    """The part of a whole model that a tower by itself is, with the tensors and the outputs of that."""

    def __init__(self, whole: Any, tower: Tower) -> None:
        """Take the modules of `whole` that belong to the tower."""
        super().__init__()
        self.config = getattr(whole.config, tower.config)
        self._features, self._embedding = getattr(whole, tower.features), tower.embedding
        if tower.parts:
            modules = [(name, whole.get_submodule(path)) for name, path in tower.parts]
        elif tower.module is not None:
            modules = list(whole.get_submodule(tower.module).named_children())
        else:
            modules = [(name, m) for name, m in whole.named_children() if not f"{name}.".startswith(tower.beside)]
        for name, module in modules:
            self.add_module(name, module)

    def get_output_embeddings(self) -> Any:
        """Return the head over a vocabulary; None for a tower without one."""
        return getattr(self, "lm_head", None)

    def get_input_embeddings(self) -> Any:
        """Return the embedding of a language model's tokens."""
        return self.get_submodule("model").get_input_embeddings()  # type: ignore[operator]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Return logits, or hidden states and embeddings, under the names that the tower by itself gives them."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        out = self._features(**{name: value for name, value in given.items() if value is not None})
        if "logits" in out:
            return {"logits": out.logits}
        pooled = out.pooler_output  # of a LLaVA model one tensor for each image
        features = torch.stack(list(pooled)) if isinstance(pooled, list | tuple) else pooled
        return {"last_hidden_state": out.last_hidden_state, self._embedding: features}
