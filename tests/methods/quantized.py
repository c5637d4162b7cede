"""What the tests of weight-only methods share: data, a run of a pass, and outputs of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.data.kinds import Batches
from compressor.model.folder import ModelFolder
from compressor.model.modules import submodule
from compressor.passes.apply import Setting, apply_pass
from compressor.storage.grids import Grid
from tests.core.toy import VOCABULARY, toy_batches


def run(method: Any, model: ModelFolder, work: Path, batches: Batches | None = None, **options: Any) -> Any:
    """Apply a method; return the new model and the changes."""
    instance = method(method.Options(**options))
    return apply_pass(instance, model, batches or toy_batches(model.task), Setting(work, "fingerprint", 1 << 26))


def outputs(model: ModelFolder) -> torch.Tensor:
    """Return the outputs of a model for the toy data, padding left out."""
    module, found = model.load(), []
    for inputs in toy_batches(model.task):
        tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
        with torch.no_grad():
            out = module(**tensors)[0]
        mask = tensors.get("attention_mask")
        found.append(out.flatten(0, -2) if mask is None else out[mask.bool()])
    return torch.cat(found)


def check_on_grids(model: ModelFolder) -> dict[str, Grid]:
    """Check that every quantized weight lies on its grid exactly; return the grids."""
    module = model.load()
    grids = {name: model.grid(name) for name in model.grids}
    for name, grid in grids.items():
        codes = grid.exact_codes(submodule(module, name).weight.data, name)
        assert int(codes.max()) < 1 << grid.spec.bits
    return grids


def padded(tokens: int = 24, other: int | None = None) -> Batches:
    """Return padded batches of token ids; `other` replaces the ids under the padding."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(2):
        ids = rng.integers(2, VOCABULARY, (4, tokens))
        mask = (np.arange(tokens)[None] < rng.integers(9, tokens + 1, (4, 1))).astype(np.int64)
        made.append({"input_ids": ids if other is None else np.where(mask == 1, ids, other), "attention_mask": mask})
    return Batches(lambda: iter(made), len(made))


def correlated(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return rows [tokens, width] float64 whose channels are correlated and of very different loudness."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    mixed = mixed @ torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return mixed * torch.exp(torch.randn(width, generator=generator, dtype=torch.float64))
