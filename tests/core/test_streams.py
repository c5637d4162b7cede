"""A stream says where it stands: what is gone, or not there yet, cannot be read in another's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compressor.errors import ModelError
from compressor.model.folder import open_model
from compressor.walk import Walk
from compressor.walk.activations import ActivationStore, Budget
from compressor.walk.streams import Point, Stream, depth_of
from tests.core.toy import toy_batches

Pico = Callable[..., Path]


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(ActivationStore(tmp_path, Budget(1 << 20)), torch.device("cpu"))


def test_a_blocks_output_is_the_next_ones_input() -> None:
    assert depth_of(3, Point.OUTPUT) == depth_of(4, Point.INPUT) != depth_of(4, Point.MIDDLE)


def test_only_the_place_where_it_stands_can_be_read(stream: Stream) -> None:
    stream.put(0, torch.ones(1, 2, 3), depth_of(1, Point.INPUT))
    assert torch.equal(stream.read(0, depth_of(0, Point.OUTPUT)), torch.ones(1, 2, 3))
    stream.put(0, torch.zeros(1, 2, 3), depth_of(1, Point.MIDDLE))
    with pytest.raises(AssertionError, match="stands at depth 3, asked for is 2"):
        stream.read(0, depth_of(1, Point.INPUT))
    with pytest.raises(AssertionError, match="stands at depth None"):
        stream.read(7, 0)
    assert torch.equal(stream[0], torch.zeros(1, 2, 3)), "by number: the last ones, wherever they stand"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_with_their_block(stream: Stream, bad: float) -> None:
    with pytest.raises(ModelError, match="block 5 gives NaN or infinite"):
        stream.put(0, torch.full((1, 1, 1), bad), depth_of(5, Point.OUTPUT))


def test_a_view_refuses_inputs_that_it_has_advanced(pico: Pico, tmp_path: Path) -> None:
    model = open_model(pico("llama"))
    for view in Walk(model, toy_batches(model.task), work=tmp_path, cache_bytes=1 << 26).survey():
        before = view.dense_in(0)
        with pytest.raises(AssertionError):
            view.dense_middle(0)
        with pytest.raises(AssertionError):
            view.current_in(0)  # a survey has no current stream
        view.put_dense_middle(0, view.to_middle(view.module, before, 0))
        with pytest.raises(AssertionError):
            view.dense_in(0)
        view.put_dense(0, view.from_middle(view.module, view.dense_middle(0), 0))
        with pytest.raises(AssertionError):
            view.dense_middle(0)
