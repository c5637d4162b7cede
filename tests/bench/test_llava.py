"""The three graphs of a LLaVA model compute what the stock model does, and so do the figures of its answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from compressor.demo.pictures import pictures
from compressor.demo.train_llava import build_model, build_tokenizer, save, score, write_questions
from compressor.measure.answers import SeeingModel
from tests.bench.llava import Measuring, open_language, open_vision

Pico = Callable[..., Path]


def test_logits_and_greedy_answers_are_those_of_the_stock_model(pico: Pico, tmp_path: Path) -> None:
    folder = pico("llava")
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    joined = SeeingModel(open_vision(folder, tmp_path / "vision"), open_language(folder, tmp_path / "language"), 320)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    features, ids = joined.features({"pixel_values": pixels})[0], np.asarray([5, 320, 9, 17, 33])
    spread = torch.from_numpy(np.asarray([[5, *[320] * 16, 9, 17, 33]]))
    with torch.no_grad():
        wanted = whole(input_ids=spread, pixel_values=torch.from_numpy(pixels)).logits[0].numpy()
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        tokens = whole.generate(input_ids=spread, pixel_values=torch.from_numpy(pixels), **options)
    logits = joined.language.forward(joined.inputs(features, ids))[0]
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    np.testing.assert_array_equal(joined.generate(features, ids, 6), tokens[0, spread.shape[1] :].numpy())


def test_figures_are_those_of_the_training_and_fall_with_the_tokens(tmp_path: Path) -> None:
    model, tokenizer = build_model().eval(), build_tokenizer()
    batch = list(itertools.islice(pictures("valid"), 4))
    save(model, tokenizer, tmp_path / "model", {})
    write_questions(batch, tmp_path)
    measuring = Measuring(tmp_path / "model", tmp_path / "questions.jsonl", tmp_path / "work")
    dense, fewer = measuring.row(""), measuring.row("random-visual-tokens: {keep: 0.25}")
    right = score(model, tokenizer, batch)
    assert dense["kl"] == 0 and dense["top1"] == dense["greedy"] == 1 and dense["accuracy"] == right.pop("all")
    assert dense["kinds"] == right
    assert fewer["kl"] > 0
