"""Quantized safetensors in vLLM, which lives in an environment of its own: `COMPRESSOR_VLLM` names its interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.exporters.safetensors import export_safetensors
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import ModelFolder, load
from compressor.verification import REFERENCE, write_reference
from tests.exporters.test_quantized import quantized

pytest.importorskip("compressed_tensors")
Pico = Callable[..., Path]

PROMPTS = [[5, 17, 200, 31], [9] * 3 + [44, 101, 250, 7, 12], list(range(20, 52))]
NEW_TOKENS = 16
# What the CPU kernels of vLLM 0.32 take: widths that are multiples of 32, 16-bit activations.
WIDTHS = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
          "intermediate_size": 96}  # fmt: skip
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
RUN = """
import json, sys
from vllm import LLM, SamplingParams
folder, out, prompts, new = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
model = LLM(folder, dtype="float16", enforce_eager=True, max_model_len=128, max_num_seqs=4, skip_tokenizer_init=True)
sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, prompt_logprobs=0, detokenize=False)
made = model.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
tokens = [list(one.outputs[0].token_ids) for one in made]
logs = [[entry[i].logprob for entry, i in zip(one.prompt_logprobs[1:], ids[1:])] for one, ids in zip(made, prompts)]
json.dump({"tokens": tokens, "logs": logs}, open(out, "w"))
"""


@pytest.fixture(scope="session")
def vllm() -> str:
    """The interpreter that has vLLM."""
    if not (given := os.environ.get("COMPRESSOR_VLLM")):
        pytest.skip("set COMPRESSOR_VLLM to a python that has vLLM")
    return given


def log_probabilities(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Return what the model gives each token of `ids` after the first, natural logarithms, float64."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])
    picked: np.ndarray = chosen[:, 0].numpy()
    return picked


def served(python: str, model: ModelFolder, folder: Path, scratch: Path) -> dict[str, list[list[float]]]:
    folder.mkdir()
    export_safetensors(model, folder)
    write_reference(TorchRunner(model.path), folder / REFERENCE)
    arguments = [str(folder), str(scratch / "made.json"), json.dumps(PROMPTS), str(NEW_TOKENS)]
    done = subprocess.run(
        [python, "-c", RUN, *arguments], capture_output=True, text=True, cwd=scratch, env={**os.environ, **SETTINGS}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made: dict[str, list[list[float]]] = json.loads((scratch / "made.json").read_text())
    return made


@pytest.mark.slow
def test_groups_of_four_bits(vllm: str, pico: Pico, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source, out = pico("llama", **WIDTHS, tie_word_embeddings=False), tmp_path / "o"
    made = served(vllm, quantized(source, tmp_path / "w", symmetric=True, head=4), out, tmp_path)
    stock, half = (AutoModelForCausalLM.from_pretrained(out, dtype=kind).eval() for kind in ("float32", "float16"))
    # What its own greedy tokens are worth, too: float16 may pick the second of two that are nearly equal.
    rows = [ids + list(map(int, tokens)) for ids, tokens in zip(PROMPTS, made["tokens"], strict=True)]

    def largest_error(logs: list[np.ndarray]) -> float:
        pairs = zip(logs, rows, strict=True)
        return max(float(np.abs(a - log_probabilities(stock, ids)[: len(a)]).max()) for a, ids in pairs)

    error = largest_error([np.array(logs) for logs in made["logs"]])
    rounding = largest_error([log_probabilities(half, ids) for ids in rows])
    quantization = largest_error([log_probabilities(load(source).eval(), ids) for ids in rows])
    assert error < 3 * rounding < quantization / 5
    for ids, row in zip(PROMPTS, rows, strict=True):
        with torch.no_grad():
            logits = stock(torch.tensor([row])).logits[0, len(ids) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(row[len(ids) :])[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 3 * rounding
