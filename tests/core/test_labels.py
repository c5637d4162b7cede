"""Labels on disk, for each kind of head: numbers, sets of labels, pairs that are read together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.architectures.tasks import Head
from compressor.data.kinds import SentenceData, SetData, ValueData
from compressor.data.reading import DataRequest, load_data
from compressor.data.tables import Sentences, read_labels, read_prompts, read_sentences
from compressor.errors import DataError

TOXIC = Head("label sets", ("toxic", "Threat to life", "insult"))
SCORE = Head("values", ("LABEL_0",))
CLASSES = Head("labels", ("no", "yes"))


def table(folder: Path, content: str, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "text,labels\na,toxic insult\nb,\nc,Threat to life\n",
        "text,label\na,0 2\nb,\nc,1\n",
        'text,labels\na,"[0, 2]"\nb,[]\nc,[1]\n',
        "text,labels\na,\"['toxic', 'insult']\"\nb,[]\nc,['threat to life']\n",
        "labels;text\ntoxic|insult;a\n;b\nthreat to life;c\n",
        "id,text,toxic,threat_to_life,insult\n7,a,1,0,1\n8,b,0,0,0\n9,c,0,1.0,0\n",
    ],
)
def test_sets_of_labels(content: str, tmp_path: Path) -> None:
    found = read_sentences(table(tmp_path, content), "evaluation.data", TOXIC)
    assert found.texts == [("a",), ("b",), ("c",)]
    assert found.sets == [(0, 2), (), (1,)]
    assert read_labels(table(tmp_path, content.replace("text", "file")), "k", TOXIC).sets == found.sets


@pytest.mark.parametrize(
    ("content", "head", "said"),
    [
        ("text,labels\na,toxic\nb,rude\n", TOXIC, "line 3: label 'rude'"),
        ("text,labels\na,3\n", TOXIC, "line 2: label '3'; the model knows classes 0 to 2"),
        ("text,toxic,threat to life,insult\na,1,0,2\n", TOXIC, "line 2: '2' for a label; allowed: 0 and 1"),
        ("text,toxic,insult\na,1,0\n", TOXIC, "cannot tell what its columns"),
        ("text,label\na,high\n", SCORE, "line 2: the score or label is 'high'; allowed: finite numbers"),
        ("text,label\na,nan\n", SCORE, "finite numbers"),
        ("text,label\na,0.5\n", CLASSES, "line 2: label '0.5'"),
        ("query,document,label\na,b,2\n", CLASSES, "line 2: label '2'"),
    ],
)
def test_labels_that_do_not_fit_the_head(content: str, head: Head, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_sentences(table(tmp_path, content), "evaluation.data", head)


def test_an_image_folder_may_hold_numbers_or_sets(tmp_path: Path) -> None:
    assert read_labels(table(tmp_path, "a.png,0.5\nb.png,-2\n"), "k", SCORE).numbers == [0.5, -2.0]
    assert read_labels(table(tmp_path, "file,score\na.png,3\n"), "k", SCORE).numbers == [3.0]
    with pytest.raises(DataError, match=r"label '0.5'.* classes 0 to 1"):
        read_labels(table(tmp_path, "a.png,0.5\n"), "k", CLASSES)
    with pytest.raises(DataError, match="cannot tell") as caught:
        read_labels(table(tmp_path, "file,mark\na.png,3\n"), "k", TOXIC)
    assert "0 and 1 for each label" in str(caught.value.hint)


def request(path: Path, purpose: Any = "evaluation") -> DataRequest:
    return DataRequest(str(path), (), None, 24, 0, purpose)


def bert(pico: Callable[..., Path], **config: Any) -> Path:
    return pico("bert", architecture="BertForSequenceClassification", **config)


def test_a_cross_encoder_reads_both_texts_at_once(pico: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = bert(pico, num_labels=1)
    path = table(tmp_path, "text1,text2,score\none two,three,0.25\nfour,five six,-1.5\n")
    data = load_data(request(path), "text-classification", folder)
    assert isinstance(data, ValueData)
    assert data.values.tolist() == [0.25, -1.5]
    (batch,) = data.batches
    wanted = AutoTokenizer.from_pretrained(folder)(
        ["one two", "four"], ["three", "five six"], padding=True, return_tensors="np"
    )
    for name, ids in wanted.items():
        assert np.array_equal(batch[name], ids), name


def test_labels_become_what_the_head_takes(pico: Callable[..., Path], tmp_path: Path) -> None:
    sets = bert(pico, num_labels=3, problem_type="multi_label_classification")
    data = load_data(request(table(tmp_path, "text,labels\na,0 2\nb,\n")), "text-classification", sets)
    assert isinstance(data, SetData)
    assert data.holds.tolist() == [[True, False, True], [False, False, False]]
    plain = load_data(request(table(tmp_path, "a\nb\n", "x.txt"), "calibration"), "text-classification", sets)
    assert isinstance(plain, SentenceData)


@pytest.mark.parametrize(
    ("config", "content", "said"),
    [
        ({"num_labels": 1}, "text,label\na,0.5\nb,0.5\n", "scores of all 2 samples are 0.5"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "text,labels\na,\nb,\n", "F1 is not defined"),
    ],
)
def test_data_on_which_nothing_can_be_measured(
    config: dict[str, Any], content: str, said: str, pico: Callable[..., Path], tmp_path: Path
) -> None:
    path, folder = table(tmp_path, content), bert(pico, **config)
    with pytest.raises(DataError, match=said):
        load_data(request(path), "text-classification", folder)
    assert load_data(request(path, "calibration"), "text-classification", folder)


def test_the_tables_of_the_page_on_data_are_read(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    prompts, encoder, reranker, classes, number, lists, flags, images = re.findall(
        r"^```csv\n(.*?)^```$", page, re.M | re.S
    )
    threats = Head("label sets", ("toxic", "threat", "insult"))

    def sentences(content: str, head: Head | None) -> Sentences:
        return read_sentences(table(tmp_path, content), "k", head)

    assert read_prompts(table(tmp_path, prompts), "k")[1:] == [
        ("cat", "a drawing of a cat"),
        ("dog", "a photo of a dog"),
    ]
    assert sentences(encoder, None).numbers == [3.8, 0.1]
    assert [len(pair) for pair in sentences(reranker, SCORE).texts] == [2, 2]
    assert sentences(classes, CLASSES).numbers == [1, 0]
    assert sentences(number, SCORE).numbers == [4.5, -1.25]
    assert sentences(lists, threats).sets == [(2,), (1, 2), ()]
    assert sentences(flags, threats).sets == [(0, 2), ()]
    thousand = Head("labels", tuple(map(str, range(1000))))
    assert read_labels(table(tmp_path, images), "k", thousand).texts == [("cats/001.jpg",), ("dogs/001.jpg",)]
