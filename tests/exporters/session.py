"""A decoder in a plain ONNX Runtime session, driven by nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, Any]
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder:
    def __init__(self, folder: Path) -> None:
        self.session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        self.inputs = [i.name for i in inputs]
        self.cache = [i for i in inputs if i.name.startswith("past_key_values.")]
        self.portable = "position_ids" in self.inputs

    def run(self, ids: Array, mask: Array, past: Sequence[Array] | None = None) -> tuple[Array, list[Array]]:
        if past is None:
            past = [np.zeros((len(ids), c.shape[1], 0, c.shape[3]), TYPES[c.type]) for c in self.cache]
        feed = {"input_ids": ids, "attention_mask": mask}
        if self.portable:
            feed["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        feed.update({c.name: p for c, p in zip(self.cache, past, strict=True)})
        logits, *present = self.session.run(None, feed)
        return logits, present


def torch_logits(model: Any, ids: Array) -> Array:
    import torch

    with torch.no_grad():
        logits: Array = model(input_ids=torch.from_numpy(np.ascontiguousarray(ids)), use_cache=False).logits.numpy()
    return logits


def stock(folder: Path) -> Any:
    """The model as transformers alone loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
