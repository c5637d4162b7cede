"""Passes that cut FFN channels and that gate FFNs, and data to calibrate on: the smallest that run the block walk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from compressor.data.kinds import Batches
from compressor.model.blueprint import Blueprint, GateSpec
from compressor.model.folder import ModelFolder
from compressor.model.modules import base_prefix, set_weight
from compressor.passes.base import Findings, Needs, Target
from compressor.walk import BlockView, Change, Walk

VOCABULARY = 320


def batches_of(model: ModelFolder) -> Batches:
    """Return random inputs of a pico-model."""
    return toy_batches("image-classification" if model.family.inputs == "pixels" else model.task)


def toy_batches(task: str, *, count: int = 3, tokens: int = 24, image: int = 32) -> Batches:
    """Return random inputs of a pico-model for a task; sentences are padded."""
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
    needs = Needs(calibration="must", dense=True, walks=2)

    def __init__(self, keep: int = 90, stop_at: int | None = None) -> None:
        self.keep, self.stop_at = keep, stop_at
        self.seen: list[int] = []

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        return source.blueprint.with_shapes(source.shapes.with_widths([self.keep] * len(source.shapes.layers)))

    def survey(self, walk: Walk, planned: Blueprint) -> Findings:
        norms = [float(sum(view.dense_in(k).norm() for k in range(len(view)))) for view in walk.survey()]
        return Findings({"norms": torch.tensor(norms)})

    def begin(self, planned: Blueprint, findings: Findings) -> None:
        self.findings = findings.tensors

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


class Gate:
    """Lets the writer of every FFN leave out inputs of at most `threshold`."""

    name = "gate"
    family = "activation"
    needs = Needs()

    def __init__(self, threshold: float = 0.05) -> None:
        self.gate = GateSpec(threshold)

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        prefix, writer = base_prefix(source.skeleton()) + source.family.blocks, source.family.ffn.writer
        names = [f"{prefix}.{index}.{writer}" for index in range(len(source.shapes.layers))]
        return replace(source.blueprint, gates=dict.fromkeys(names, self.gate))

    def change_block(self, block: BlockView) -> Change:
        return Change(block.layer, gates={block.family.ffn.writer: self.gate})
