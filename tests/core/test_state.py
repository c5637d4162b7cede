"""The state of a checkpoint: found again as it was written, and whatever damages it means to start over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.model.folder import ModelFolder, open_model
from compressor.walk.checkpoint import STATE, ShardWriter


@pytest.fixture
def source(pico: Callable[..., Path]) -> ModelFolder:
    return open_model(pico("llama"))


@pytest.fixture
def state(source: ModelFolder, tmp_path: Path) -> dict[str, Any]:
    """The state of a pass of which two parts are finished, in `tmp_path`."""
    shards = ShardWriter(tmp_path, source, "print")
    for key in ("findings", "other"):
        shards.save(key, {"every": 1}, {"x": torch.ones(2)}, findings=True)
    content: dict[str, Any] = json.loads((tmp_path / STATE).read_text())
    return content


def test_finished_parts_are_found_again(source: ModelFolder, state: dict[str, Any], tmp_path: Path) -> None:
    again = ShardWriter(tmp_path, source, "print")
    assert again.done.keys() == {"findings", "other"} and not again.damaged
    assert again.note("findings") == {"every": 1}
    assert ShardWriter(tmp_path, source, "another").done == {}
    (tmp_path / "other.safetensors").write_bytes(b"x")
    assert ShardWriter(tmp_path, source, "print").done.keys() == {"findings"}


def test_a_new_pass_is_not_damaged(source: ModelFolder, tmp_path: Path) -> None:
    assert not ShardWriter(tmp_path, source, "print").damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: "",
        lambda state: b"\xff\xfe",
        lambda state: "[" * 100_000,
        lambda state: "[]",
        lambda state: {**state, "done": None},
        lambda state: {**state, "done": [1]},
        lambda state: {**state, "done": {"findings": None}},
        lambda state: {**state, "done": {"findings": {"sha256": state["done"]["findings"]["sha256"]}}},
        lambda state: {**state, "done": {"findings": {**state["done"]["findings"], "note": {"every": "x"}}}},
        lambda state: {**state, "done": {"../x": state["done"]["findings"]}},
        lambda state: {"done": state["done"]},
    ],
)
def test_damage_means_to_start_over(
    source: ModelFolder, state: dict[str, Any], tmp_path: Path, damage: Callable[[Any], Any]
) -> None:
    content = damage(state)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    (tmp_path / STATE).write_bytes(content)
    again = ShardWriter(tmp_path, source, "print")
    assert again.done == {} and again.damaged
