"""onnxruntime-genai on exported folders: its greedy tokens are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.exporters.conftest import Exported
from tests.exporters.session import stock

og = pytest.importorskip("onnxruntime_genai", reason="pip install 'compressor[genai]'")
NEW = 24


def generated(folder: Path, prompt: list[int], *, share: bool) -> list[int]:
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    length = len(prompt) + NEW
    parameters.set_search_options(
        min_length=length, max_length=length, do_sample=False, past_present_share_buffer=share
    )
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def expected(model: Any, prompt: list[int]) -> list[int]:
    """Greedy tokens without a cache; the end token is not allowed, as with genai's min_length."""
    ends = np.atleast_1d(model.config.eos_token_id)
    tokens = list(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        logits[torch.from_numpy(ends)] = -torch.inf
        tokens.append(int(logits.argmax()))
    return tokens


@pytest.mark.parametrize("graph", ["auto", "portable"])
def test_greedy(exported: Exported, graph: str) -> None:
    source, out = exported("llama", graph, head_dim=16, tie_word_embeddings=False)
    prompt = [5, 17, 200, 31, 8]
    settings = json.loads((out / "genai_config.json").read_text())
    assert settings["search"]["past_present_share_buffer"] is (graph == "auto")
    for share in {False, graph == "auto"}:
        assert generated(out, prompt, share=share) == expected(stock(source), prompt)


@pytest.mark.parametrize("family", ["qwen2", "opt"])
def test_greedy_of_other_families(exported: Exported, family: str) -> None:
    source, out = exported(family, **({"hidden_size": 96} if family == "qwen2" else {"num_attention_heads": 3}))
    prompt = [9, 40, 77]
    assert generated(out, prompt, share=True) == expected(stock(source), prompt)


def test_greedy_with_shapes_that_differ_from_block_to_block(uneven: tuple[Path, Path]) -> None:
    from compressor.model.folder import load

    source, out = uneven
    prompt = [3, 99, 250, 4]
    for share in (True, False):
        assert generated(out, prompt, share=share) == expected(load(source), prompt)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-wt2", "stories260K-llama"])
def test_real_model_and_tokenizer(data_root: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    source = data_root / "models" / name
    export_onnx(open_model(source), tmp_path)
    text = "The little town had a castle"
    prompt = AutoTokenizer.from_pretrained(source)(text).input_ids
    assert generated(tmp_path, prompt, share=True) == expected(stock(source), prompt)
    tokenizer = og.Tokenizer(og.Model(str(tmp_path)))
    assert (
        tokenizer.encode(text).tolist()
        == AutoTokenizer.from_pretrained(source)(text, add_special_tokens=False).input_ids
    )
