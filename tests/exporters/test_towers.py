"""The towers of CLIP and SigLIP as graphs: hidden states, and the embedding of a whole sample beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compressor.exporters.onnx import export_onnx
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import open_model

FIRST_END = np.asarray([[5, 9, 1, 1], [7, 1, 1, 1]])
"""Tokens of two texts; 1 ends a text and pads it."""


@pytest.mark.parametrize(
    ("family", "architecture", "options", "outputs"),
    [
        ("clip_text_model", "CLIPTextModelWithProjection", {}, ["last_hidden_state", "text_embeds"]),
        ("clip_text_model", "CLIPTextModel", {"eos_token_id": 2}, ["last_hidden_state", "pooler_output"]),
        ("siglip_text_model", "SiglipTextModel", {}, ["last_hidden_state", "pooler_output"]),
        ("siglip_vision_model", "SiglipVisionModel", {}, ["last_hidden_state", "pooler_output"]),
        ("siglip_vision_model", "SiglipVisionModel", {"vision_use_head": False}, ["last_hidden_state"]),
    ],
)
def test_hidden_states_and_embeddings(
    pico: Callable[..., Path],
    tmp_path: Path,
    family: str,
    architecture: str,
    options: dict[str, int],
    outputs: list[str],
) -> None:
    source = open_model(pico(family, architecture=architecture, num_hidden_layers=1, **options))
    assert type(source.skeleton()).__name__ == architecture
    result = export_onnx(source, tmp_path)
    assert result.outputs == outputs
    theirs, ours = TorchRunner(source.path), OnnxRunner(tmp_path)
    inputs = {"input_ids": FIRST_END, "attention_mask": np.asarray([[1, 1, 1, 0], [1, 1, 0, 0]])}
    if source.family.inputs == "pixels":
        inputs = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)}
    elif source.family.full_length:
        assert result.inputs == ["input_ids"], "padding is read like any token, so there is no mask"
    embeddings, wanted = ours.pooled(inputs), theirs.pooled(inputs)
    if len(outputs) == 1:
        assert embeddings is None and wanted is None
    else:
        assert embeddings is not None and wanted is not None
        np.testing.assert_allclose(embeddings, wanted, atol=1e-5)
    rows = inputs.get("attention_mask", np.ones((2, 16))) > 0 if result.inputs != ["input_ids"] else slice(None)
    np.testing.assert_allclose(ours.forward(inputs)[rows], theirs.forward(inputs)[rows], atol=1e-5)
