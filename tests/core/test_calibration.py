"""Data files of all kinds, read as model inputs; too little or wrong data is one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compressor.data.kinds import ImageData, LabelData, PairData, SentenceData, TextData
from compressor.data.reading import DataRequest, Purpose, load_data, model_batches
from compressor.errors import DataError

Pico = Callable[..., Path]


def request(
    data: Path | str, *, samples: int | None = 4, length: int = 16, seed: int = 0, purpose: Purpose = "calibration"
) -> DataRequest:
    return DataRequest(str(data), (Path.cwd(),), samples, length, seed, purpose)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    words = " ".join(f"word{i % 97} and number {i}" for i in range(3000))
    file.write_text(words)
    return file


def windows(text: Path, folder: Path, **options: object) -> np.ndarray:
    data = load_data(request(text, **options), "text-generation", folder)  # type: ignore[arg-type]
    assert isinstance(data, TextData)
    return data.windows


def test_calibration_windows_depend_on_the_seed_alone(pico: Pico, text: Path) -> None:
    folder = pico("llama")
    first, again, other = (windows(text, folder, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (4, 16)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_evaluation_windows_follow_each_other(pico: Pico, text: Path) -> None:
    folder = pico("llama")
    everything = windows(text, folder, samples=None, purpose="evaluation")
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text.read_text(), add_special_tokens=False)["input_ids"]
    assert np.array_equal(everything.ravel(), ids[: len(ids) // 16 * 16])
    assert np.array_equal(windows(text, folder, samples=3, purpose="evaluation"), everything[:3])


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_too_little_text_says_how_much_there_is(pico: Pico, tmp_path: Path, purpose: Purpose) -> None:
    (tmp_path / "short.txt").write_text("a few words only")
    with pytest.raises(DataError, match=f"{purpose}.data: short.txt has .* tokens, too little for 4 samples") as caught:
        load_data(request(tmp_path / "short.txt", purpose=purpose), "text-generation", pico("llama"))
    assert f"{purpose}.length" in str(caught.value) and "at most 0" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_missing_file_lists_where_it_was_looked_for(pico: Pico) -> None:
    with pytest.raises(DataError, match=r"calibration.data: nowhere.txt: no such file") as caught:
        load_data(request("nowhere.txt"), "text-generation", pico("llama"))
    assert str(Path.cwd()) in str(caught.value)


def test_relative_path_is_tried_in_order(pico: Pico, text: Path, tmp_path: Path) -> None:
    other = DataRequest("text.txt", (tmp_path / "nowhere", tmp_path), 4, 16, 0, "calibration")
    assert load_data(other, "text-generation", pico("llama"))


def test_jsonl_documents(pico: Pico, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    assert windows(tmp_path / "x.jsonl", pico("llama")).shape == (4, 16)
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, '{"body": 1}']))
    with pytest.raises(DataError, match="x.jsonl line 31"):
        windows(tmp_path / "x.jsonl", pico("llama"))


def test_binary_file_is_not_text(pico: Pico, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        windows(tmp_path / "x.txt", pico("llama"))


@pytest.mark.parametrize("header", ["", "sentence1,sentence2,score\n"])
def test_sentence_pairs(pico: Pico, tmp_path: Path, header: str) -> None:
    rows = "".join(f'"one, {i}",two {i},{i / 10}\n' for i in range(6))
    (tmp_path / "pairs.csv").write_text(header + rows)
    data = load_data(
        request(tmp_path / "pairs.csv", samples=None, purpose="evaluation"), "feature-extraction", pico("bert")
    )
    assert isinstance(data, PairData)
    assert data.first[1] == "one, 1"
    assert data.scores.tolist() == [i / 10 for i in range(6)]
    batch = next(iter(model_batches(data)))
    assert batch["input_ids"].shape == batch["attention_mask"].shape


def test_labelled_sentences_for_both_tasks(pico: Pico, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("".join(f'a "sentence {i}\t{i % 2}\n' for i in range(8)))
    folder = pico("bert")
    labelled = load_data(request(tmp_path / "x.tsv"), "text-classification", folder)
    plain = load_data(request(tmp_path / "x.tsv"), "feature-extraction", folder)
    assert isinstance(labelled, LabelData) and len(labelled) == 4
    assert isinstance(plain, SentenceData) and len(plain) == 4


def images(folder: Path, count: int = 5) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["file,label"]
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{i % 3}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def test_labelled_images_can_be_read_again(pico: Pico, tmp_path: Path) -> None:
    data = load_data(request(images(tmp_path / "i")), "image-classification", pico("vit"))
    assert isinstance(data, LabelData)
    first, again = list(data.batches), list(data.batches)
    assert sum(len(batch["pixel_values"]) for batch in first) == 4 == len(data.labels)
    assert all(np.array_equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, again, strict=True))


def test_labels_cannot_name_files_outside(pico: Pico, tmp_path: Path) -> None:
    folder = images(tmp_path / "i")
    (tmp_path / "secret.png").write_bytes(b"x")
    (folder / "labels.csv").write_text("../secret.png,0\n")
    with pytest.raises(DataError, match="not an image in its folder"):
        load_data(request(folder, samples=1), "image-classification", pico("vit"))


def test_an_encoder_takes_images_without_labels(pico: Pico, tmp_path: Path) -> None:
    folder = images(tmp_path / "i")
    listed = model_batches(load_data(request(folder), "feature-extraction", pico("clip_vision_model")))
    (folder / "labels.csv").unlink()
    found = load_data(request(folder), "feature-extraction", pico("clip_vision_model"))
    assert isinstance(found, ImageData) and len(found) == 4
    pairs = zip(listed, found.batches, strict=True)
    assert all(np.array_equal(a["pixel_values"], b["pixel_values"]) for a, b in pairs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(request(tmp_path / "empty", samples=1), "feature-extraction", pico("clip_vision_model"))


def test_broken_image(pico: Pico, tmp_path: Path) -> None:
    folder = images(tmp_path / "i")
    (folder / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1.png is not a readable image"):
        load_data(request(folder, samples=5), "image-classification", pico("vit"))


def test_image_label_that_the_model_does_not_know(pico: Pico, tmp_path: Path) -> None:
    folder = images(tmp_path / "i")
    assert load_data(request(folder), "image-classification", pico("vit", num_labels=3))
    with pytest.raises(DataError, match=r"calibration.data: labels.csv line 4: label '2'.* classes 0 to 1"):
        load_data(request(folder), "image-classification", pico("vit", num_labels=2))


@pytest.mark.parametrize(
    ("family", "task"), [("llama", "text-generation"), ("bert", "feature-extraction"), ("bert", "text-classification")]
)
def test_tokenizer_with_more_tokens_than_the_model(pico: Pico, text: Path, family: str, task: str) -> None:
    from transformers import AutoTokenizer

    full = pico(family)
    ids = AutoTokenizer.from_pretrained(full)(text.read_text(), add_special_tokens=False)["input_ids"]
    greatest = max(ids)
    enough, small = (pico(family, vocab_size=size) for size in (greatest + 1, greatest))
    everything = request(text, samples=None, length=len(ids) if family == "bert" else 8, purpose="evaluation")
    assert load_data(everything, task, enough)
    with pytest.raises(
        DataError, match=rf"evaluation.data: .* gives token {greatest}; vocab_size in its config.json is {greatest},"
    ) as caught:
        load_data(everything, task, small)
    assert "model.id" in str(caught.value)


def test_folder_where_text_is_wanted(pico: Pico, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        load_data(request(tmp_path), "text-generation", pico("llama"))


def test_model_without_tokenizer(text: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no tokenizer"):
        load_data(request(text), "text-generation", tmp_path)
