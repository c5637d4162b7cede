"""The packaged demo model is small, loads with stock transformers, and is as good as its figures say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from compressor.data.reading import DataRequest, load_data
from compressor.demo import MODEL_DIR, TRAIN_TEXT, VALID_TEXT
from compressor.demo.grammar import END
from compressor.demo.train import Plan, build_model, build_tokenizer, encode, main, save, score, train

STORY = "Anna the writer lived in Brask, by the lake Ombra. She had a cousin called Emil, a baker from Alden."


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return json.loads((MODEL_DIR / "training.json").read_text())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def test_it_is_a_small_plain_llama(model: LlamaForCausalLM, figures: dict[str, float]) -> None:
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert 500_000 <= model.num_parameters() == figures["parameters"] <= 1_000_000
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) < 4_000_000


def test_its_quality_is_as_stated(model: LlamaForCausalLM, figures: dict[str, float]) -> None:
    length = model.config.max_position_embeddings
    request = DataRequest("demo:valid", bases=(), samples=None, length=length, seed=0, purpose="evaluation")
    data = load_data(request, "text-generation", MODEL_DIR)
    perplexity, accuracy = score(model, torch.tensor(data.windows).flatten(), length)
    assert perplexity == pytest.approx(figures["valid_perplexity"], rel=1e-3)
    assert accuracy == pytest.approx(figures["valid_next_token_accuracy"], abs=2e-3)
    assert figures["perplexity_of_the_grammar"] < perplexity < 1.25 * figures["perplexity_of_the_grammar"]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Hugo the smith lived in Lorne, by the lake", " Perl"),
        ("There was a baker in Alden whose name was Ida, and her house stood near the", " clock"),
        (f"{STORY} Anna had nine red lamps made of", " glass"),
        (f"{STORY} Anna had nine red lamps made of glass, and Emil had two. Anna kept cats and fed them", " milk"),
    ],
)
def test_it_knows_its_world(model: LlamaForCausalLM, prompt: str, answer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(tokens[0, ids.shape[1] :]).startswith(answer)


@pytest.mark.parametrize(
    ("callback", "share"),
    [
        (r"Then \w+ went home to( \w+) and", 0.95),
        (r"Then \w+ went home to \w+ and \w+ to( \w+)\.", 0.95),
        (r"Now \w+ had( \w+) left", 0.9),
        (r"left and \w+ had( \w+)\.", 0.8),
    ],
)
def test_it_refers_back_to_towns_and_counts(model: LlamaForCausalLM, callback: str, share: float) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    hits = []
    for story in VALID_TEXT.read_text(encoding="utf-8").split(f"\n{END}\n"):
        if len(hits) < 60 and (found := re.search(callback, story)):
            ids = tokenizer(story[: found.start(1)], return_tensors="pt")["input_ids"]
            with torch.no_grad():
                guess = model(input_ids=ids).logits[0, -1].argmax()
            hits.append(found[1].startswith(tokenizer.decode([int(guess)])))
    assert len(hits) == 60
    assert sum(hits) / len(hits) >= share


def test_training_is_deterministic_and_learns(tmp_path: Path) -> None:
    text = TRAIN_TEXT.read_text(encoding="utf-8")[:60_000]
    plan = Plan(steps=12, batch=4, window=64, warmup=4, vocabulary=400)
    tokenizer = build_tokenizer(text, plan.vocabulary)
    ids = encode(tokenizer, text)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("first", "again"):
            model = build_model(plan)
            before = score(model, ids[:4096], plan.window)[0]
            train(model, ids, plan)
            save(model, tokenizer, tmp_path / name, {})
    finally:
        torch.set_num_threads(threads)
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert score(model, ids[:4096], plan.window)[0] < before / 2


@pytest.mark.slow
def test_the_script_writes_model_texts_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "1", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 1
    assert (tmp_path / "train.txt").read_bytes() == TRAIN_TEXT.read_bytes()
    assert (tmp_path / "valid.txt").read_bytes() == VALID_TEXT.read_bytes()
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (MODEL_DIR / "tokenizer.json").read_bytes()
