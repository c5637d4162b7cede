"""An export needs the memory of its largest tensors, not of the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys
from pathlib import Path
from compressor.exporters.onnx import export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.model.folder import open_model
from compressor.machine.memory import peak_memory
source = open_model(sys.argv[1])
source.skeleton()
before = peak_memory()
{"onnx": export_onnx, "safetensors": export_safetensors}[sys.argv[2]](source, Path(sys.argv[3]))
print(peak_memory() - before)
"""


def write_llama(folder: Path, layers: int) -> int:
    """Write a Llama of some 35 MB per block; return the bytes of its weights."""
    import torch
    from transformers import LlamaConfig

    from compressor.model.folder import open_model
    from compressor.storage.tensors import Plan, write_safetensors

    LlamaConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=512,
        max_position_embeddings=256,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    state = open_model(folder).skeleton().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    plans = [Plan(name, "float32", shape, lambda s=shape: torch.full(s, 0.01)) for name, shape in shapes.items()]
    write_safetensors(folder / "model.safetensors", plans)
    return sum(tensor.numel() for tensor in state.values()) * 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", pytest.param("safetensors", marks=pytest.mark.exhaustive)])
def test_memory_is_flat_in_depth(repository: Path, tmp_path: Path, kind: str) -> None:
    used = {}
    for layers in (4, 20):
        source, out = tmp_path / f"source{layers}", tmp_path / f"out{layers}"
        out.mkdir()
        weights = write_llama(source, layers)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(source), kind, str(out)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(repository)},
        )
        used[layers] = int(done.stdout)
    assert weights > 500e6
    assert used[20] - used[4] < 0.1 * weights
    assert used[20] < 0.8 * weights
