"""A pass that cuts the last FFN channels, and data to calibrate it on: the smallest thing that runs the block walk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from compressor.architectures import Shapes
from compressor.data.kinds import Batches
from compressor.model.skeleton import set_weight
from compressor.walk.walk import BlockView, Change, Walk

VOCABULARY = 320


def toy_batches(task: str, *, count: int = 3, tokens: int = 24, image: int = 32) -> Batches:
    """Return random inputs of a pico-model; sentences are padded."""
    rng = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    for _ in range(count):
        if task == "image-classification":
            made.append({"pixel_values": rng.standard_normal((2, 3, image, image), dtype=np.float32)})
            continue
        inputs = {"input_ids": rng.integers(2, VOCABULARY, (2, tokens))}
        if task == "feature-extraction":
            mask = np.ones((2, tokens), np.int64)
            mask[1, tokens // 2 :] = 0
            inputs["attention_mask"] = mask
        made.append(inputs)
    return Batches(lambda: iter(made), count)


class Cut:
    """Keeps the first `keep` channels of every FFN."""

    name = "cut"
    family = "structure"
    summary = "keep the first channels"
    calibrated = True
    needs_dense = True
    walks = 2

    def __init__(self, keep: int = 90, stop_at: int | None = None) -> None:
        self.keep, self.stop_at = keep, stop_at
        self.seen: list[int] = []

    def plan(self, source: Any) -> Shapes:
        return source.shapes.with_widths([self.keep] * len(source.shapes.layers))

    def plan_grids(self, source: Any) -> dict[str, Any]:
        return {}

    def survey(self, walk: Walk, planned: Shapes) -> dict[str, torch.Tensor]:
        norms = [float(sum(view.dense_in(k).norm() for k in range(len(view)))) for view in walk.survey()]
        return {"norms": torch.tensor(norms)}

    def begin(self, source: Any, planned: Shapes, findings: Mapping[str, torch.Tensor]) -> None:
        self.findings = findings

    def change_stem(self, walk: Walk) -> None: ...

    def change_tail(self, walk: Walk) -> None: ...

    def config_updates(self, source: Any) -> dict[str, Any]:
        return {}

    def change_block(self, block: BlockView) -> Change:
        if block.index == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(block.index)
        middles = [block.to_middle(block.module, block.current_in(k), k) for k in range(len(block))]
        ffn = block.family.ffn
        for slot in ffn.readers:
            reader = block.module.get_submodule(slot.path)
            bias = reader.bias[: self.keep].clone() if reader.bias is not None else None
            set_weight(reader, reader.weight[: self.keep].clone(), bias)
        writer = block.module.get_submodule(ffn.writer)
        # A number that depends on all activations so far shows whether a resumed run saw the same ones.
        scale = 1 + 1e-6 * float(sum(middle.double().sum() for middle in middles))
        set_weight(writer, writer.weight[:, : self.keep] * scale)
        return Change(replace(block.layer, intermediate_size=self.keep), {"kept_channels": float(self.keep)})
