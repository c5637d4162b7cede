"""Scores of zero-shot classification, and the tables that it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressor.data.tables import read_named_labels, read_prompts, read_sentences
from compressor.errors import DataError
from compressor.measure.zero_shot import class_embeddings, joined


def test_scores_are_scaled_cosines_with_the_mean_of_a_class_s_prompts() -> None:
    rng = np.random.default_rng(0)
    images, texts, owners = rng.standard_normal((5, 8)), rng.standard_normal((6, 8)), np.asarray([0, 1, 0, 2, 2, 2])
    scores = joined(images, class_embeddings(texts, owners), {"logit_scale": np.log(20.0), "logit_bias": -3.0})
    for row, image in enumerate(images):
        for label in range(3):
            mean = sum(text / np.sqrt(text @ text) for text, owner in zip(texts, owners, strict=True) if owner == label)
            cosine = image @ mean / np.sqrt((image @ image) * (mean @ mean))
            assert scores[row, label] == pytest.approx(20.0 * cosine - 3.0, rel=1e-5)


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_prompts_are_read_by_label_and_as_sentences(tmp_path: Path) -> None:
    path = table(tmp_path, 'prompt,label\n"a cat, sitting",cat\na dog,dog\na cat,cat\n')
    assert read_prompts(path, "evaluation.prompts") == [("cat", "a cat, sitting"), ("dog", "a dog"), ("cat", "a cat")]
    assert read_sentences(path, "calibration.prompts").texts == [("a cat, sitting",), ("a dog",), ("a cat",)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label,words\ncat,a cat\n", "cannot tell what its columns label, words hold"),
        ("label,prompt\ncat,a cat\n", "prompts for fewer than two labels"),
        ("label,prompt\ncat,a cat\ndog,\n", "line 3: the prompt is empty"),
        ("label,prompt\ncat,a cat\n,a dog\n", "line 3: the label is empty"),
    ],
)
def test_tables_of_prompts_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_prompts(table(tmp_path, text), "evaluation.prompts")


def test_labels_of_images_are_names_that_have_prompts(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label\n1.png,dog\n2.png,cat\n1.png,dog\n")
    found = read_named_labels(path, "evaluation.data", ("cat", "dog"))
    assert (found.texts, found.numbers) == ([("1.png",), ("2.png",)], [1.0, 0.0])
    with pytest.raises(DataError, match="line 2: no prompt stands for the label 'dog'"):
        read_named_labels(path, "evaluation.data", ("cat", "fox"))
    with pytest.raises(DataError, match="line 3: 1.png has another label already"):
        read_named_labels(table(tmp_path, "file,label\n1.png,dog\n1.png,cat\n"), "evaluation.data", ("cat", "dog"))
