"""The pico-models are what the other tests believe they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from tests.pico import FAMILIES, IMAGE, class_named, make_pico, sample_text

TEXT = "The miller found seven apples by the harbour."


def _outputs(folder: Path, family: str) -> torch.Tensor:
    kind = FAMILIES[family][1]
    model = class_named(FAMILIES[family][0]).from_pretrained(folder).eval()
    inputs = {}
    if kind in ("image", "clip", "llava"):
        inputs["pixel_values"] = torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
    if kind in ("bpe", "wordpiece", "clip", "llava"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        text = f"{'<image>' * 16}{TEXT}"
        inputs.update(tokenizer([text] * 3 if kind == "llava" else TEXT, return_tensors="pt"))
        inputs = {k: v for k, v in inputs.items() if k != "token_type_ids" or kind == "wordpiece"}
    with torch.no_grad():
        output = model(**inputs)
    if kind == "clip":
        return output.image_embeds
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


@pytest.mark.parametrize("family", list(FAMILIES))
def test_stock_classes_load_a_pico_and_its_output_is_alive(family: str, pico: Callable[..., Path]) -> None:
    values = _outputs(pico(family), family)
    assert torch.isfinite(values).all()
    rows = values.flatten(0, -2)
    assert (rows.std(dim=-1) > 0.05).all() and (rows.std(dim=-1) < 50).all()
    assert (rows[0] - rows[-1]).abs().max() > 0.05, "different inputs must give different outputs"


@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_parameter_is_constant(family: str, pico: Callable[..., Path]) -> None:
    model = class_named(FAMILIES[family][0]).from_pretrained(pico(family))
    dead = [n for n, p in model.named_parameters() if p.numel() > 1 and p.float().std() < 1e-3]
    assert dead == []


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        (make_pico("llama", tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first != other


def test_overrides_reach_config_and_weights(tmp_path: Path) -> None:
    folder = make_pico("qwen3", tmp_path, num_hidden_layers=2, dtype="bfloat16")
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_tokenizers_round_trip(family: str, pico: Callable[..., Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(pico(family))
    text = sample_text(1).strip()
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert decoded.lower().replace(" ", "") == text.lower().replace(" ", "")
    assert max(tokenizer(text)["input_ids"]) < 320
