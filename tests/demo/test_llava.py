"""The pictures of the small LLaVA model say what their questions ask, and its training makes a model that loads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from compressor.demo.muon import Muon
from compressor.demo.pictures import CELL, COLOURS, DIGITS, KINDS, SIDE, WORDS, Picture, pictures
from compressor.demo.train_llava import (
    IGNORED,
    PATCHES,
    Plan,
    answered,
    build_model,
    build_tokenizer,
    encode,
    prepared,
    save,
    score,
    train,
    write_questions,
)

SOME = list(itertools.islice(pictures("valid"), 60))


def test_pictures_are_the_same_for_the_same_split_and_seed_alone() -> None:
    first, again, other = (next(pictures(*which)) for which in (("valid", 3), ("valid", 3), ("train", 3)))
    assert first.questions == again.questions and np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)


def test_digits_are_drawn_in_their_cells_and_colours() -> None:
    for picture in SOME:
        found = {}
        for thing in picture.things:
            top, left = thing.cell // 3 * CELL, thing.cell % 3 * CELL
            cell = picture.pixels[top : top + CELL, left : left + CELL]
            found[thing.cell] = int((cell == COLOURS[thing.colour]).all(-1).sum())
        assert min(found.values()) >= 7, "a digit has at least so many dots"
        inked = (picture.pixels.max(-1).astype(int) - picture.pixels.min(-1) > 60).sum()
        assert inked == sum(found.values()), "and there is nothing else"


def answer_of(picture: Picture, kind: str, question: str) -> str:
    """Return the right answer, worked out from what is on the picture."""
    words, things = question.split(), picture.things
    if kind == "digits":
        return DIGITS[len(things)]
    if kind == "count":
        return DIGITS[sum(thing.colour == words[-2] for thing in things)]
    if kind == "colour":
        (asked,) = [thing for thing in things if DIGITS[thing.digit] == words[-2]]
        return asked.colour
    (asked,) = [thing for thing in things if thing.colour in words]
    return DIGITS[asked.digit] if kind == "digit" else asked.place


def test_every_answer_is_right_and_every_kind_is_asked() -> None:
    asked = [(picture, *entry) for picture in SOME for entry in picture.questions]
    assert {kind for _, kind, _, _ in asked} == set(KINDS)
    for picture, kind, question, answer in asked:
        assert answer == answer_of(picture, kind, question)
        assert {*question.split(), *answer.split()} <= set(WORDS)


def test_only_answers_are_learned() -> None:
    tokenizer = build_tokenizer()
    asked = encode(tokenizer, SOME[:2])
    for picture, ids, labels, owners in zip(SOME[:2], asked.ids, asked.labels, asked.owners, strict=True):
        learned = labels != IGNORED
        told = [tokenizer.decode(labels[(owners == n) & learned].tolist()) for n in range(1, 1 + len(KINDS))]
        assert [text for text in told if text] == [answer for _, _, answer in picture.questions]
        assert (ids[:PATCHES] == ids[0]).all() and (labels[:PATCHES] == IGNORED).all() and not owners[:PATCHES].any()


def test_a_question_beside_others_is_a_question_alone() -> None:
    tokenizer, model = build_tokenizer(), build_model().eval()
    together = encode(tokenizer, SOME[:3])
    with torch.no_grad():
        logits, _ = answered(model, prepared(SOME[:3]), together)
        for place, picture in enumerate(SOME[:3]):
            for number in range(1, 1 + len(picture.questions)):
                own = (together.owners[place] == 0) | (together.owners[place] == number)
                ids = together.ids[place][None, own]
                alone = model(input_ids=ids, pixel_values=prepared([picture])).logits[0]
                torch.testing.assert_close(logits[place][own], alone, rtol=0, atol=1e-5)


def test_muon_is_that_of_torch_without_its_rounding() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((24, 16), (24, 16), (16, 40))]
    start = [matrix.detach().clone() for matrix in ours]
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizers = [
        Muon(ours, lr=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        assert (mine - other).norm() < 0.02 * (other - before).norm(), "theirs are rounded to bfloat16"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlavaForConditionalGeneration, Path]:
    """Return a model after a few steps, and the folder in which it was saved."""
    folder = tmp_path_factory.mktemp("llava")
    tokenizer, model = build_tokenizer(), build_model()
    train(model, tokenizer, Plan(steps=2, batch=2))
    save(model, tokenizer, folder, {"steps": 2})
    write_questions(SOME[:2], folder)
    return model, folder


def test_training_is_deterministic_and_moves_all_that_is_read(
    trained: tuple[LlavaForConditionalGeneration, Path],
) -> None:
    model, again, untrained = trained[0], build_model(), dict(build_model().named_parameters())
    train(again, build_tokenizer(), Plan(steps=2, batch=2))
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
        assert "post_layernorm" in name or not torch.equal(parameter, untrained[name]), name


def test_it_loads_with_its_processor_and_answers_as_it_was_trained(
    trained: tuple[LlavaForConditionalGeneration, Path],
) -> None:
    from PIL import Image

    model, folder = trained
    entries = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert [entry["answer"] for entry in entries] == [a for picture in SOME[:2] for _, _, a in picture.questions]
    image = Image.open(folder / "images" / entries[0]["image"])
    assert image.size == (SIDE, SIDE)
    processor = AutoProcessor.from_pretrained(folder)
    given = processor(images=image, text=f"<image> {entries[0]['question']} answer :", return_tensors="pt")
    assert int((given["input_ids"] == model.config.image_token_id).sum()) == PATCHES
    loaded = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = loaded(**given).logits
        wanted, _ = answered(model, prepared(SOME[:1]), encode(build_tokenizer(), SOME[:1]))
    torch.testing.assert_close(given["pixel_values"], prepared(SOME[:1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, wanted[:, : logits.shape[1]], rtol=0, atol=1e-4)


def test_the_share_of_right_answers_counts_whole_answers(trained: tuple[LlavaForConditionalGeneration, Path]) -> None:
    right = score(trained[0], build_tokenizer(), SOME[:6])
    assert set(right) == {*KINDS, "all"} and all(0 <= share <= 1 for share in right.values())
