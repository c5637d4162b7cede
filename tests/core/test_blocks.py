"""The block walk: the same activations as the whole model, resume to the same bytes, flat memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.model.folder import open_model
from compressor.passes.apply import Setting, apply_pass
from compressor.walk import Walk
from compressor.walk.activations import ActivationStore, Budget
from tests.core.test_loading import COVERED
from tests.core.toy import Cut, batches_of

Pico = Callable[..., Path]
PLENTY = 1 << 30


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def run(pico: Pico, family: str, work: Path, method: Any, *, cache: int = PLENTY, **overrides: Any) -> Any:
    source = open_model(pico(family, **overrides))
    setting = Setting(work=work, fingerprint="f", cache_bytes=cache)
    return apply_pass(method, source, batches_of(source), setting)


@pytest.mark.parametrize("family", COVERED)
def test_streamed_outputs_are_the_models(pico: Pico, family: str, tmp_path: Path) -> None:
    source = open_model(pico(family))
    batches = batches_of(source)
    streamed = list(Walk(source, batches, work=tmp_path, cache_bytes=PLENTY).outputs())
    model = source.load()
    for out, inputs in zip(streamed, batches, strict=True):
        with torch.no_grad():
            given = model(**{name: torch.as_tensor(array) for name, array in inputs.items()})
        wanted = next(name for name in ("logits", *source.family.pooled, "last_hidden_state") if name in given)
        whole = given[wanted].numpy()
        np.testing.assert_allclose(out, whole, atol=2e-6)


@pytest.mark.parametrize("family", COVERED)
def test_halves_of_a_block_make_the_block(pico: Pico, family: str, tmp_path: Path) -> None:
    source = open_model(pico(family))
    walk = Walk(source, batches_of(source), work=tmp_path, cache_bytes=PLENTY)
    from compressor.walk.calls import run_block

    for view in walk.survey():
        with torch.no_grad():
            whole = run_block(view.module, view.dense_in(0), view.call(0))
            halves = view.from_middle(view.module, view.to_middle(view.module, view.dense_in(0), 0), 0)
        torch.testing.assert_close(halves, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", COVERED)
def test_result_is_a_smaller_model_that_reloads(pico: Pico, family: str, tmp_path: Path) -> None:
    model, changes = run(pico, family, tmp_path, Cut())
    assert {layer.intermediate_size for layer in model.shapes.layers} == {90}
    assert model.parameters < open_model(pico(family)).parameters
    assert [change.figures["kept_channels"] for change in changes] == [90.0] * 3
    # DINOv2's config.json states the width as a ratio, which 90 channels are not.
    assert ("compression" in json.loads((tmp_path / "config.json").read_text())) == family.startswith("dinov2")


@pytest.mark.parametrize("stop_at", [0, 1, 2])
@pytest.mark.parametrize("family", ["llama", "opt", "bert", "vit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopped_run_resumes_to_the_same_bytes(
    pico: Pico, family: str, stop_at: int, dtype: str, tmp_path: Path
) -> None:
    run(pico, family, tmp_path / "whole", Cut(), dtype=dtype)
    with pytest.raises(KeyboardInterrupt):
        run(pico, family, tmp_path / "stopped", Cut(stop_at=stop_at), dtype=dtype)
    second = Cut()
    run(pico, family, tmp_path / "stopped", second, dtype=dtype)
    assert second.seen == list(range(stop_at, 3))
    assert shards(tmp_path / "stopped") == shards(tmp_path / "whole")


def test_damaged_shard_is_made_again(pico: Pico, tmp_path: Path) -> None:
    run(pico, "llama", tmp_path, Cut())
    good = shards(tmp_path)
    (tmp_path / "block-0001.safetensors").write_bytes(b"half")
    again = Cut()
    run(pico, "llama", tmp_path, again)
    assert again.seen == [1]
    assert shards(tmp_path) == good


def test_other_fingerprint_starts_over(pico: Pico, tmp_path: Path) -> None:
    run(pico, "llama", tmp_path, Cut())
    source, again = open_model(pico("llama")), Cut()
    apply_pass(again, source, batches_of(source), Setting(tmp_path, "another", PLENTY))
    assert again.seen == [0, 1, 2]


@pytest.mark.parametrize("cache", [0, 10_000])
def test_spilling_to_disk_changes_nothing(pico: Pico, cache: int, tmp_path: Path) -> None:
    run(pico, "llama", tmp_path / "memory", Cut())
    run(pico, "llama", tmp_path / "disk", Cut(), cache=cache)
    assert shards(tmp_path / "disk") == shards(tmp_path / "memory")
    assert not list((tmp_path / "disk").rglob("*.f32"))


def test_what_a_killed_run_left_is_removed(pico: Pico, tmp_path: Path) -> None:
    for name in ("activations/7f-0.f32", "parked/basis.0000.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"of another process")
    run(pico, "llama", tmp_path, Cut(), cache=0)
    assert not [file for folder in ("activations", "parked") for file in tmp_path.glob(f"{folder}/*")]


def test_activation_store_keeps_to_its_budget(tmp_path: Path) -> None:
    budget = Budget(1000)
    store = ActivationStore(tmp_path, budget)
    first, second = torch.randn(2, 5, 20), torch.randn(1, 5, 20)
    store[0], store[1] = first, second
    assert budget.free == 200
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(store[0], first) and torch.equal(store[1], second)
    store.clear()
    assert budget.free == 1000
    assert not list(tmp_path.iterdir())


def test_only_one_block_has_weights_at_a_time(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("llama"))
    walk = Walk(source, batches_of(source), work=tmp_path, cache_bytes=PLENTY)
    for view in walk.survey():
        loaded = [i for i, b in enumerate(walk.blocks) if not any(p.is_meta for p in b.parameters())]
        assert loaded == [view.index]


@pytest.mark.parametrize("family", ["qwen2", "llama", "vit"])
def test_stem_and_tail_lie_on_disk_while_blocks_are_walked(pico: Pico, family: str, tmp_path: Path) -> None:
    source = open_model(pico(family))
    walk = Walk(source, batches_of(source), work=tmp_path, cache_bytes=PLENTY)

    def outside() -> dict[str, torch.Tensor]:
        named = walk.model.named_parameters(remove_duplicate=False)
        return {name: p for name, p in named if not name.startswith(walk.prefix)}

    before = {name: p.clone() for name, p in outside().items()}
    for _ in walk.survey():
        assert not any(p.numel() for p in outside().values())
    assert outside().keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in outside().items())
    assert len({id(p) for p in outside().values()}) < len(before) or not source.blueprint.tied
    assert not list(tmp_path.rglob("*.f32"))


class Explode(Cut):
    """Makes a block overflow."""

    def change_block(self, block: Any) -> Any:
        change = super().change_block(block)
        writer = block.module.get_submodule(block.family.ffn.writer)
        writer.weight.data.fill_(float("inf"))
        return change


def test_overflow_names_the_block(pico: Pico, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="block 0 gives NaN or infinite"):
        run(pico, "llama", tmp_path, Explode())


class Wrong(Cut):
    """Does another thing than it plans."""

    def plan(self, source: Any, target: Any) -> Any:
        return source.blueprint.with_shapes(source.shapes.with_widths([80, 90, 90]))


def test_plan_and_result_must_agree(pico: Pico, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="planned sums of widths"):
        run(pico, "llama", tmp_path, Wrong())
