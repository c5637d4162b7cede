"""Greedy samples: the same prompts in both models, real text, the place where they part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compressor.data.kinds import Ids, TextData
from compressor.data.reading import DataRequest, load_data
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.verification.continuations import NEW_TOKENS, continuations, first_difference
from tests.verification.conftest import export


@dataclass
class Fixed:
    """A model of given continuations; it keeps what it was asked."""

    folder: Path
    made: Ids
    task: str = "text-generation"
    asked: tuple[tuple[int, ...], int] = ((), 0)

    def generate(self, ids: Ids, new_tokens: int) -> Ids:
        self.asked = (ids.shape, new_tokens)
        return self.made


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 2), ([4, 2], [1, 2], 1), ([1, 2], [1, 2, 3], 3), ([], [], None)],
)
def test_first_difference(first: list[int], second: list[int], place: int | None) -> None:
    assert first_difference(first, second) == place


@pytest.mark.parametrize("graph", ["genai", pytest.param("portable", marks=pytest.mark.exhaustive), "pytorch"])
def test_both_go_on_from_the_beginnings_of_the_data(
    graph: str, artifact: Path, pico: Callable[..., Path], text: DataRequest, tmp_path: Path
) -> None:
    source = pico("llama")
    folder = export(source, tmp_path / "portable", graph="portable") if graph == "portable" else artifact
    runner = TorchRunner(source) if graph == "pytorch" else OnnxRunner(folder)
    data = load_data(text, "text-generation", source)
    assert isinstance(data, TextData)
    found = continuations(runner, TorchRunner(source), data)  # type: ignore[arg-type]
    assert len(found) == 3 and len({sample["prompt"] for sample in found}) == 3
    for sample in found:  # the same weights: the same texts
        assert sample["prompt"] and sample["differs_at"] is None
        assert sample["dense"] == sample["compressed"] != "" and 1 <= sample["tokens"] <= NEW_TOKENS


def test_a_text_ends_where_a_model_ends_it(artifact: Path) -> None:
    from compressor.measure.runner import read_config

    stated = read_config(artifact)["eos_token_id"]
    end = stated if isinstance(stated, int) else stated[0]
    dense = Fixed(artifact, np.asarray([[9, 10, 11, 12], [9, end, 10, 11]]))
    ours = Fixed(artifact, np.asarray([[9, 10, end, 12], [9, end, 12, 13]]))
    data = TextData(np.arange(40, dtype=np.int64).reshape(2, 20) + 9)
    longer, equal = continuations(ours, dense, data)  # type: ignore[arg-type]
    assert ours.asked == dense.asked == ((2, 10), NEW_TOKENS)
    assert (longer["tokens"], longer["differs_at"]) == (4, 3)
    assert (equal["tokens"], equal["differs_at"]) == (2, None)


def test_none_without_text_to_generate(artifact: Path) -> None:
    runner = Fixed(artifact, np.zeros((1, 1), np.int64), task="feature-extraction")
    assert continuations(runner, runner, TextData(np.zeros((1, 8), np.int64))) == []  # type: ignore[arg-type]
    runner.task = "text-generation"
    assert continuations(runner, runner, TextData(np.zeros((1, 1), np.int64))) == []  # type: ignore[arg-type]
    broken = OnnxRunner(artifact)
    broken.extend = None  # type: ignore[method-assign,assignment]
    assert continuations(broken, broken, TextData(np.ones((1, 8), np.int64))) == []
