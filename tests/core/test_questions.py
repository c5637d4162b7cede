"""Questions about images: the file, its images, and the tokens that they become."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compressor.data.kinds import AnswerData
from compressor.data.preprocessors import load_tokenizer
from compressor.data.questions import load_answers, load_question_images, read_questions
from compressor.data.reading import DataRequest
from compressor.errors import DataError
from compressor.exporters.safetensors import export_safetensors
from compressor.model.folder import open_model

Pico = Callable[..., Path]
PROMPT = "<image> {question} answer :"


def row(image: str, question: str, answer: str = "seven apples", **more: Any) -> dict[str, Any]:
    return {"image": image, "question": question, "answer": answer, **more}


def written(folder: Path, *rows: Any, places: tuple[str, ...] = ("images/a.png", "b.png")) -> Path:
    for number, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * number, 9, 200)).save(folder / place)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def request(folder: Path, prompt: str = PROMPT, samples: int | None = None) -> DataRequest:
    return DataRequest(str(folder), (), samples, 512, 0, "evaluation", prompt=prompt)


@pytest.fixture(scope="module")
def vision(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image part of a LLaVA model."""
    folder = tmp_path_factory.mktemp("vision")
    export_safetensors(open_model(pico("llava"), part="vision"), folder)
    return folder


def test_questions_about_one_image_stand_together(tmp_path: Path) -> None:
    data = written(tmp_path, row("a.png", "one"), row("b.png", "two", kind="where"), row("images/a.png", "three"))
    asked = read_questions(request(data))
    assert [(one.question, one.kind, one.image.name) for one in asked] == [
        ("one", "", "a.png"),
        ("three", "", "a.png"),
        ("two", "where", "b.png"),
    ]
    assert len(read_questions(request(data / "questions.jsonl", samples=2))) == 2


def test_tokens_and_images_are_those_of_the_model(pico: Pico, vision: Path, tmp_path: Path) -> None:
    data = written(tmp_path, row("b.png", "a grey cat"), row("a.png", "the old clock", "by the harbour"))
    model = pico("llava")
    found = load_answers(request(data), model, vision, 320)
    assert isinstance(found, AnswerData) and [asked.image for asked in found.questions] == [0, 1]
    tokenizer = load_tokenizer(model)
    for asked, question, answer in zip(
        found.questions, ("a grey cat", "the old clock"), ("seven apples", "by the harbour"), strict=True
    ):
        prompt = f"<image> {question} answer :"
        assert [*asked.prompt] == tokenizer(prompt)["input_ids"]
        assert asked.answer[-1] == tokenizer.eos_token_id and asked.prompt.count(320) == 1
        assert tokenizer.decode([*asked.prompt, *asked.answer[:-1]]) == f"{prompt} {answer}"
    (batch,) = found.images
    assert batch["pixel_values"].shape == (2, 3, 32, 32) and not np.array_equal(*batch["pixel_values"])
    images = load_question_images(request(data), vision)
    assert len(images) == 2 and np.array_equal(next(iter(images.batches))["pixel_values"], batch["pixel_values"])


def test_a_chat_template_puts_the_question(pico: Pico, tmp_path: Path) -> None:
    model = Path(shutil.copytree(pico("llava"), tmp_path / "model"))
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}"
        " {% endfor %}{% endfor %}ASSISTANT:"
    )
    (model / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    data = written(tmp_path / "data", row("a.png", "who"))
    (asked,) = load_answers(request(data, prompt=""), model, None, 320).questions
    assert load_tokenizer(model).decode([*asked.prompt]) == "USER: <image> who ASSISTANT:"
    with pytest.raises(DataError, match="has no chat template"):
        load_answers(request(data, prompt=""), pico("llava"), None, 320)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "line 2: not JSON"),
        ("[1]", "line 2: image is null; allowed: a text"),
        (row("a.png", "what", ""), 'line 2: answer is ""; allowed: a text'),
        (row("a.png", "what", kind=3), "line 2: kind is 3; allowed"),
        (row("c.png", "what"), "line 2: image is 'c.png', which is no file in the folder of questions.jsonl"),
        (row("../secret.png", "what"), "line 2: image is '../secret.png', which is no file"),
        (row("/etc/hostname", "what"), "line 2: image is '/etc/hostname', which is no file"),
        (row("a\0.png", "what"), "line 2: image is"),
    ],
)
def test_lines_that_are_no_questions(tmp_path: Path, line: Any, said: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    data = written(tmp_path / "data", row("a.png", "one"), line)
    with pytest.raises(DataError, match=said):
        read_questions(request(data))


@pytest.mark.parametrize(
    ("prompt", "question", "said"),
    [
        ("{question} answer :", "one", "which stands for the image, 0 times before the answer; allowed: once"),
        ("<image> <image> {question}", "one", "which stands for the image, 2 times"),
        (PROMPT, "what is <image>", "which stands for the image, 2 times"),
    ],
)
def test_prompts_that_do_not_hold_the_image_once(
    pico: Pico, tmp_path: Path, prompt: str, question: str, said: str
) -> None:
    data = written(tmp_path, row("a.png", question))
    with pytest.raises(DataError, match=said):
        load_answers(request(data, prompt), pico("llava"), None, 320)


def test_data_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words\n")
    for path in (tmp_path, tmp_path / "text.txt"):
        with pytest.raises(DataError, match="questions about images are a .jsonl file, or a folder with"):
            read_questions(request(path))
