"""Questions about images with their right answers, on which a language model that sees images is measured.

A .jsonl file has one question a line: `image`, `question`, `answer`, and `kind` where figures by kind are wanted.
Images lie in the folder of the file or below it; a name alone is looked for there, then in its folder `images`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.data.images import check_images, open_images, pixels
from compressor.data.kinds import AnswerData, Batches, EvalData, ImageData, Inputs, Question
from compressor.data.preprocessors import library_calls, load_tokenizer
from compressor.data.reading import IMAGE_BATCH, DataRequest, choose, find_data, load_data, model_config
from compressor.data.texts import read_text
from compressor.errors import DataError
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json

FILE = "questions.jsonl"
"""The file that is read where the data is a folder."""
QUESTION = "{question}"
"""Stands in a prompt for the question."""
_IMAGES = "images"
_TEMPLATE = "chat_template.json"
_HINT = 'Each line is {"image": "a.png", "question": "...", "answer": "..."}, with "kind" or without.'


@dataclass(frozen=True)
class Asked:
    """A line of the file.

    Attributes:
        image: the file of its image.
        kind: what such questions are called; may be empty.
        question: the question.
        answer: the right answer.
    """

    image: Path
    kind: str
    question: str
    answer: str


def question_file(request: DataRequest) -> Path:
    """Return the file of questions that is asked for.

    Raises:
        DataError: there is none.
    """
    path = find_data(request)
    file = path / FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".jsonl":
        raise DataError(
            f"{request.key}: {path.name}: questions about images are a .jsonl file, or a folder with {FILE}", hint=_HINT
        )
    return file


def read_questions(request: DataRequest) -> list[Asked]:
    """Return the questions that are asked for, those about one image one after the other.

    Raises:
        DataError: the file is missing or holds too few, a line is no question, or an image is none of its folder's.
    """
    file = question_file(request)
    lines = [(number, line) for number, line in enumerate(read_text(file, request.key).split("\n"), 1) if line.strip()]
    asked = [_parsed(line, file, f"{request.key}: {file.name} line {number}") for number, line in lines]
    chosen = [asked[place] for place in choose(len(asked), request, file, "questions")]
    places = {image: place for place, image in enumerate(dict.fromkeys(one.image for one in chosen))}
    return sorted(chosen, key=lambda one: places[one.image])


def _parsed(line: str, file: Path, where: str) -> Asked:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON", hint=_HINT) from error
    stated = entry if isinstance(entry, dict) else {}
    for key in ("image", "question", "answer"):
        if not isinstance(stated.get(key), str) or not stated[key].strip():
            raise DataError(f"{where}: {key} is {json.dumps(stated.get(key))[:60]}; allowed: a text", hint=_HINT)
    kind = stated.get("kind", "")
    if not isinstance(kind, str) or len(kind) > 100:
        raise DataError(f"{where}: kind is {json.dumps(kind)[:60]}; allowed: a text of at most 100 characters")
    return Asked(_image(stated["image"], file, where), kind, stated["question"], stated["answer"])


def _image(name: str, file: Path, where: str) -> Path:
    root = Path(os.path.realpath(file.parent))
    for folder in (root, root / _IMAGES) if "\0" not in name else ():
        found = Path(os.path.realpath(os.path.join(folder, name)))
        if root in found.parents and found.is_file():
            return found
    raise DataError(f"{where}: image is {name[:80]!r}, which is no file in the folder of {file.name}")


def load_samples(request: DataRequest, task: str, folder: Path) -> EvalData:
    """Return the data for the model in a folder, as `load_data` does; of questions about images the images.

    Raises:
        DataError: they cannot be used.
    """
    return load_data(request, task, folder) if request.prompt is None else load_question_images(request, folder)


def load_question_images(request: DataRequest, folder: Path) -> ImageData:
    """Return the images of the questions that are asked for, each once, for the image encoder in `folder`.

    Raises:
        DataError: as `read_questions` says, or an image cannot be read.
    """
    images, files = _images(read_questions(request), request, folder)
    return ImageData(images, len(files), str(question_file(request)))


def _images(asked: Sequence[Asked], request: DataRequest, folder: Path) -> tuple[Batches, list[Path]]:
    files = list(dict.fromkeys(one.image for one in asked))
    reader = open_images(folder, model_config(folder), trust_remote_code=request.trust_remote_code)
    check_images(files, request.key)

    def make() -> Iterable[Inputs]:
        for start in range(0, len(files), IMAGE_BATCH):
            yield {"pixel_values": pixels(files[start : start + IMAGE_BATCH], reader, request.key)}

    return Batches(make, -(-len(files) // IMAGE_BATCH)), files


def load_answers(request: DataRequest, language: Path, vision: Path | None, image_token: int) -> AnswerData:
    """Return the questions that are asked for as tokens, and their images.

    Args:
        request: for questions; `prompt` says how they are put.
        language: folder of the language model, or of the whole, with its tokenizer.
        vision: folder of the image encoder; None leaves the images out.
        image_token: stands for an image in a prompt.

    Raises:
        DataError: as `read_questions` says; there is no prompt, or it does not hold the image once; or a token is none
            of the model's.
    """
    from compressor.model.source import read_config

    asked = read_questions(request)
    images, files = (Batches(tuple, 0), list[Path]()) if vision is None else _images(asked, request, vision)
    places = {file: place for place, file in enumerate(files)}
    tokenizer = load_tokenizer(language, request.key, trust_remote_code=request.trust_remote_code)
    with library_calls(f"{request.key}: the tokenizer of {language.name}"):
        found = [_question(one, places.get(one.image, 0), tokenizer, language, request.prompt or "") for one in asked]
    size = int(read_config(language).get_text_config().vocab_size)
    for one, question in zip(asked, found, strict=True):
        _check(one, question, image_token, size, request.key)
    return AnswerData(images, tuple(found), image_token, str(question_file(request)))


def _question(asked: Asked, place: int, tokenizer: Any, folder: Path, prompt: str) -> Question:
    """Return a question as tokens: the answer's are those behind what the prompt alone and with it have in common."""
    text = prompt.replace(QUESTION, asked.question) if prompt else _chat(tokenizer, folder, asked.question)
    joint = "" if text[-1:].isspace() else " "
    end = tokenizer.eos_token_id
    alone, both = ([*tokenizer(t)["input_ids"]] for t in (text, f"{text}{joint}{asked.answer}"))
    alone, both = (ids[:-1] if ids and ids[-1] == end else ids for ids in (alone, both))
    common = len(os.path.commonprefix([alone, both]))
    return Question(place, asked.kind, tuple(both[:common]), (*both[common:], *([] if end is None else [end])))


def _chat(tokenizer: Any, folder: Path, question: str) -> str:
    """Return the prompt that a model's chat template makes of an image and a question about it."""
    file = own_file(folder, _TEMPLATE)
    if tokenizer.chat_template is None and file is not None:
        tokenizer.chat_template = read_json(file).get("chat_template")
    if tokenizer.chat_template is None:
        raise DataError(
            "model.prompt: the model has no chat template that says how a question is put to the model",
            hint=f'Set model.prompt (eval: --prompt), such as "<image> {QUESTION} answer :", with its image token.',
        )
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def _check(asked: Asked, question: Question, image_token: int, size: int, key: str) -> None:
    """Raise DataError for a question that the model cannot be asked."""
    seen = question.prompt.count(image_token)
    if seen != 1 or image_token in question.answer:
        raise DataError(
            f"model.prompt: a prompt has token {image_token}, which stands for the image, {seen} times before the"
            f" answer; allowed: once (question {asked.question[:60]!r})",
            hint="Write the model's own token for an image, such as <image>, into model.prompt, and into no question.",
        )
    greatest = max(*question.prompt, *question.answer)
    if greatest >= size:
        raise DataError(
            f"{key}: the tokenizer gives token {greatest}; the model knows tokens 0 to {size - 1}",
            hint="Put the tokenizer files that belong to the model into the folder of model.id.",
        )
