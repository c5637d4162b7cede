"""Texts, tables and images on disk: what is legal is read, what is wrong is one error that says where."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.architectures.tasks import Head
from compressor.data.images import check_images
from compressor.data.tables import Sentences, read_labels, read_sentences
from compressor.data.texts import DOCUMENT_END, read_documents, read_lines
from compressor.errors import DataError

KEY = "evaluation.data"
HEAD, TWO = Head("labels", ("a", "b", "c", "d")), Head("labels", ("a", "b"))


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_jsonl_strings_hold_any_separator_but_a_line_feed(tmp_path: Path, mark: str, end: str) -> None:
    documents = ["one\u2028two", "three\x85four", "five\x0bsix", "plain"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents[:3]] + ['"plain"']
    file = written(tmp_path, "x.jsonl", mark + end.join(lines) + end)
    assert read_lines(file, KEY) == documents
    assert read_documents(file, KEY) == DOCUMENT_END.join(documents)


@pytest.mark.parametrize("name", ["x.txt", "x.csv"])
def test_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, name, "\ufeffsentence\u2028one\ntwo\n")
    found = [text for (text,) in read_sentences(file, KEY).texts] if name == "x.csv" else read_lines(file, KEY)
    assert found == ["sentence\u2028one", "two"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": null}', '"text" is null'),
        ('{"text": 3}', '"text" is 3'),
        ('{"text": "\\ud800"}', "a string of Unicode"),
        ('{"body": "x"}', 'not JSON with a "text" field'),
        ("3", 'not JSON with a "text" field'),
        pytest.param("[" * 100_000, 'not JSON with a "text" field', id="deep"),
    ],
)
def test_jsonl_line_without_a_text_names_the_line(tmp_path: Path, line: str, reason: str) -> None:
    file = written(tmp_path, "x.jsonl", f'{{"text": "good"}}\n\n{line}\n')
    with pytest.raises(DataError, match=f"evaluation.data: x.jsonl line 3: .*{reason}"):
        read_lines(file, KEY)


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.csv"])
def test_other_encodings_are_refused(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, name, b'{"text": "\xe9"}\n')
    with pytest.raises(DataError, match=f"{name} is not UTF-8 text"):
        read_sentences(file, KEY) if name == "x.csv" else read_lines(file, KEY)


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
@pytest.mark.parametrize("header", ["sentence1 sentence2 score", "Sentence_A Sentence-B similarity", ""])
def test_pairs_however_they_are_divided(tmp_path: Path, suffix: str, delimiter: str, header: str) -> None:
    rows = [(f"a, {i}; b", f'two "{i}"', i / 4) for i in range(5)]
    file = tmp_path / f"pairs.{suffix}"
    with file.open("w", newline="") as stream:
        quoting = {"quoting": csv.QUOTE_NONE, "quotechar": None} if suffix == "tsv" else {}
        writer = csv.writer(stream, delimiter=delimiter, **quoting)  # type: ignore[arg-type]
        writer.writerows([header.split(), *rows] if header else rows)
    found = read_sentences(file, KEY)
    assert found.texts == [(first, second) for first, second, _ in rows]
    assert found.numbers == [score for _, _, score in rows]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.text("ab,;\t\"' \n", min_size=1).filter(str.strip)] * 2), min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t"),
)
def test_any_sentences_come_back_under_a_header(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
) -> None:
    file = tmp_path_factory.mktemp("csv") / "x.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        writer.writerows([("sentence1", "sentence2", "score"), *((*row, 1) for row in rows)])
    assert read_sentences(file, KEY).texts == rows


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    table = "id,score,sentence2,sentence1\nr0,3.5,two,one\n"
    found = read_sentences(written(tmp_path, "x.csv", table), KEY)
    assert (found.texts, found.numbers) == ([("one", "two")], [3.5])
    found = read_sentences(written(tmp_path, "x.csv", "id,label,text\nr0,1,one\n"), KEY, TWO)
    assert (found.texts, found.numbers) == ([("one",)], [1.0])
    found = read_sentences(written(tmp_path, "x.csv", "sentence,label\n" + "a; b; c,1\n" * 3 + ",\n"), KEY)
    assert (found.texts, found.numbers) == ([("a; b; c",)] * 3, [1.0] * 3)
    found = read_sentences(written(tmp_path, "x.csv", "id,text\n7,one\n"), KEY)
    assert (found.texts, found.numbers) == ([("one",)], [])


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("id,review,grade\nr0,good,1\n", "cannot tell what its columns id, review, grade hold"),
        ("r0,one,two,3\n", "cannot tell what its 4 columns hold"),
        ("sentence1,sentence2\none,two\n", "cannot tell"),
        ("sentence1,sentence2,score,label\none,two,3,1\n", "'score' and 'label' mean the same"),
        ("sentence1,sentence2,score\none,two,3\none,two\n", "line 3: 2 columns, where the first row has 3"),
        ("sentence1,sentence2,score\none,two,nan\n", "line 2: the score or label is 'nan'"),
        ("one,two,3\none,two,-inf\n", "line 2: the score or label is '-inf'"),
        ("sentence1;sentence2;score\na;b;3,5\n", "line 2: the score or label is '3,5'"),
        ("sentence1,sentence2,score\none,two,\n", "line 2: the score or label is ''"),
        pytest.param(f"text,score\n{'a ' * 70_000},3\n", "not a table that can be read", id="long"),
    ],
)
def test_tables_that_cannot_be_told(tmp_path: Path, table: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"evaluation.data: x.csv.*{reason}") as caught:
        read_sentences(written(tmp_path, "x.csv", table), KEY)
    assert caught.value.hint


@pytest.mark.parametrize("label", ["2", "-1", "0.5"])
def test_label_of_a_sentence_is_a_class_of_the_model(tmp_path: Path, label: str) -> None:
    file = written(tmp_path, "x.csv", f"sentence,label\ngood,1\nbad,{label}\n")
    assert read_sentences(file, KEY).numbers == [1.0, float(label)]
    with pytest.raises(DataError, match=rf"x.csv line 3: label '{label}'; the model knows classes 0 to 1"):
        read_sentences(file, KEY, TWO)


def test_image_labels(tmp_path: Path) -> None:
    for table in (
        "a.png,3\nb.png,0\n",
        "file,label\na.png, 3\n\nb.png,0\n",
        "label;width;file\n3;9;a.png\n0;9;b.png\n",
    ):
        assert read_labels(written(tmp_path, "labels.csv", table), KEY, HEAD) == Sentences(
            [("a.png",), ("b.png",)], [3.0, 0.0]
        )


@pytest.mark.parametrize("label", ["4", "-1", "1_0", "1.5"])
def test_image_label_is_a_class_of_the_model(tmp_path: Path, label: str) -> None:
    file = written(tmp_path, "labels.csv", f"file,label\na.png,3\nb.png,{label}\n")
    with pytest.raises(DataError, match=r"labels.csv line 3: label '.*; the model knows classes 0 to 3"):
        read_labels(file, KEY, HEAD)


@pytest.mark.parametrize("label", ["²", "cat", pytest.param("9" * 5000, id="long")])
def test_an_image_label_is_a_number(tmp_path: Path, label: str) -> None:
    file = written(tmp_path, "labels.csv", f"file,label\na.png,3\nb.png,{label}\n")
    with pytest.raises(DataError, match=r"labels.csv line 3: the score or label is '.*; allowed: finite numbers"):
        read_labels(file, KEY, HEAD)


@pytest.mark.parametrize("table", ["a.png\nb.png\n", "a.png,1,2\n", "name,number\na.png,1\n"])
def test_image_labels_that_cannot_be_told(tmp_path: Path, table: str) -> None:
    with pytest.raises(DataError, match="cannot tell"):
        read_labels(written(tmp_path, "labels.csv", table), KEY, HEAD)


def test_all_damaged_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    from PIL import Image

    files = [tmp_path / f"{i}.png" for i in range(6)]
    for file in files:
        Image.effect_noise((64, 64), 50).save(file)
    check_images(files, KEY)
    files[1].write_bytes(files[1].read_bytes()[:600])
    with pytest.raises(DataError, match=r"^evaluation.data: 1.png is not a readable image: .*truncated") as caught:
        check_images(files, KEY)
    assert "2.png" not in str(caught.value)
    for file in files[2:5]:
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1.png.*2.png.*3.png.*; 4 of 6 images are damaged") as caught:
        check_images(files, KEY)
    assert "4.png" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_eight_bits_are_refused(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    value = float("nan") if mode == "F" else 40_000
    Image.new(mode, (8, 8), value).save(tmp_path / "deep.tiff")
    with pytest.raises(DataError, match=f"deep.tiff is not a readable image: its pixels are of mode {mode}"):
        check_images([tmp_path / "deep.tiff"], KEY)


def test_images_that_other_programs_would_draw_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(DataError, match="x.png is not a readable image"):
        check_images([tmp_path / "x.png"], KEY)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="it has 9000 x 9000 pixels; allowed: 64 million"):
        check_images([tmp_path / "huge.png"], KEY)


def test_a_file_with_two_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.csv line 3: a.png has the label 1 already"):
        read_labels(written(tmp_path, "labels.csv", "file,label\na.png,1\na.png,2\n"), KEY, HEAD)
    assert len(read_labels(written(tmp_path, "labels.csv", "a.png,1\na.png,1\n"), KEY, HEAD).texts) == 2


def test_a_table_with_a_nul(tmp_path: Path) -> None:
    for read in (read_labels, read_sentences):
        with pytest.raises(DataError, match="labels.csv holds a NUL"):
            read(written(tmp_path, "labels.csv", "file,label\na\0b.png,1\n"), KEY, HEAD)
