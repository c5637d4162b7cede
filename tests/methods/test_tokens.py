"""The token presets against their papers' formulas, written out in float64; their primitives in one model."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from compressor.errors import ModelError, UsageError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.remote_code import remote_code
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.blueprint import Reduction, compression_section, read_blueprint
from compressor.model.config import config_for
from compressor.model.cost import count_flops
from compressor.model.folder import ModelFolder, open_model
from compressor.model.reduced import ReducedBlock
from compressor.model.source import OWN_TYPE
from compressor.model.token_scores import Seen, random_score
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.passes.tokens._schedule import ScheduleOptions, schedule
from compressor.passes.tokens._search import Room, even, searched, work
from tests.core.toy import toy_batches
from tests.methods.token_papers import PRESETS, TEMPERATURE, at_length, papers_logits

Pico = Callable[..., Path]


def planned(source: ModelFolder, name: str, options: dict[str, Any]) -> ModelFolder:
    """Return the model after a token pass, as its blueprint alone has it: its weights are the source's."""
    method = methods()[name]
    return source.with_blueprint(method(method.Options(**options)).plan(source, Target()))


def loaded(source: ModelFolder, folder: ModelFolder) -> Any:
    """Return the module of a planned model with the weights of `source`."""
    module = folder.skeleton()
    module.load_state_dict(source.load().state_dict(), assign=True)
    return module


def pixels(source: ModelFolder, count: int) -> torch.Tensor:
    size = source.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("family", ["vit", "deit"])
@pytest.mark.parametrize("name", [*sorted(PRESETS), "keep_norm"])
def test_the_model_computes_what_the_paper_says(pico: Pico, name: str, family: str) -> None:
    step, options, biased = PRESETS["token-transforming" if name == "keep_norm" else name]
    if name == "keep_norm":
        name, step, options = "token-transforming", at_length, {**options, "keep_norm": True}
    options = {**options, **({"temperature": TEMPERATURE} if name == "token-transforming" else {})}
    source = open_model(pico(family, num_hidden_layers=4))
    folder = planned(source, name, options)
    leading, images = source.family.leading_tokens, pixels(source, 2).double()
    counts = {r.block: r.keep - leading - (name == "evit") for r in folder.blueprint.reductions if r.select != "all"}
    dense = source.load().double()
    wanted = torch.stack([papers_logits(dense, image, leading, step, counts, biased) for image in images])
    module = loaded(source, folder).double()
    with torch.no_grad():
        torch.testing.assert_close(module(pixel_values=images).logits, wanted.detach(), atol=1e-8, rtol=0)
        assert not torch.allclose(dense(pixel_values=images).logits, wanted, atol=1e-4), "something was reduced"


EVERYTHING = (
    Reduction(0, 15, "diag_x_col", "topk", "propagate", "log_size", 1, heads="max", alpha=0.2, columns=4),
    Reduction(1, 13, "wpr", "topk_alike", "drop", "log_size", 1, heads="informative", similar=1),
    Reduction(2, 11, "cls_attn", "topk", "cache", "none", 1),
    Reduction(3, 10, "random", "topk", "fuse", "none", 1),
    Reduction(4, 11, "none", "all", "restore", "log_size", 1),
    Reduction(5, 9, "value_norm", "topk", "transform", "log_size", 1, heads="max", temperature=0.1),
    Reduction(6, 6, "received", "topk", "merge", "log_size", 1, heads="rms", merged=2, keep_norm=True),
)


@pytest.fixture
def everything(pico: Pico) -> tuple[ModelFolder, ModelFolder]:
    """A model with a reduction of another kind in every block, and what it was made from."""
    source = open_model(pico("vit", num_hidden_layers=7))
    return source, source.with_blueprint(replace(source.blueprint, reductions=EVERYTHING))


def test_config_states_every_reduction(everything: tuple[ModelFolder, ModelFolder]) -> None:
    source, folder = everything
    config = config_for(source, folder.blueprint, None)
    assert read_blueprint(types.SimpleNamespace(**{**source.config.to_dict(), **config}), source.family).reductions == (
        EVERYTHING
    )
    (tokens,) = (part["tokens"] for part in compression_section(folder.blueprint)["stacks"].values())
    assert "alpha" in tokens[0] and "alpha" not in tokens[1], "stated where a method needs it"


def test_the_modelling_file_computes_every_reduction(everything: tuple[ModelFolder, ModelFolder]) -> None:
    check_modelling_file(*everything)


@pytest.mark.parametrize("name", ["evit", "attentive-mask"])
def test_registers_are_kept_and_not_asked(pico: Pico, name: str) -> None:
    """DINOv2: registers neither go nor say what goes, and layer scale is computed in the modelling file too."""
    kind = "Dinov2WithRegistersForImageClassification"
    source = open_model(pico("dinov2_with_registers", architecture=kind, num_hidden_layers=2))
    folder = planned(source, name, {"keep": 0.5, "layers": [2]})
    (reduction,) = folder.blueprint.reductions
    assert (reduction.protect, reduction.classes) == (source.family.leading_tokens, 1) and reduction.protect > 1
    check_modelling_file(source, folder)


def check_modelling_file(source: ModelFolder, folder: ModelFolder) -> None:
    """Run the text of the file as a module: its class has the stock weights and imports nothing of ours."""
    text, config = remote_code(folder, config_for(source, folder.blueprint, None))
    assert "import compressor" not in text and "from compressor" not in text
    assert config["model_type"] == f"{OWN_TYPE}{source.config.model_type}", "stock transformers refuses it by name"
    module = types.ModuleType("modeling_compressed")
    exec(compile(text, "modeling_compressed.py", "exec"), module.__dict__)
    stated = module.CompressedConfig.from_dict(config)
    model = getattr(module, config["architectures"][0])(stated).eval()
    model.load_state_dict(source.load().state_dict())
    images = pixels(source, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            model(pixel_values=images).logits, loaded(source, folder)(pixel_values=images).logits, atol=1e-5, rtol=0
        )


def test_one_graph_computes_every_reduction(everything: tuple[ModelFolder, ModelFolder], tmp_path: Path) -> None:
    source, folder = everything
    export_onnx(folder, tmp_path, OnnxOptions())
    for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer:
        assert np.isfinite(onnx.numpy_helper.to_array(tensor)).all(), f"{tensor.name}: an artifact of it would fail"
    runner, module = OnnxRunner(tmp_path), loaded(source, folder)
    for count in (1, 3):
        images = pixels(source, count)
        with torch.no_grad():
            wanted = module(pixel_values=images).logits.numpy()
        np.testing.assert_allclose(runner.forward({"pixel_values": images.numpy()}), wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["spatten", "clca", "gtp"])
def test_what_a_method_remembers_reaches_later_passes(pico: Pico, tmp_path: Path, name: str) -> None:
    """Across blocks without a reduction too: the walk hands on what the model's own blocks would."""
    source = open_model(pico("vit", num_hidden_layers=4))
    options = {"gtp": {"r": 3, "layers": [1, 3]}}.get(name, PRESETS[name][1])
    method, width = methods()[name], methods()["width"]
    plenty = 1 << 28
    first, _ = apply_pass(
        method(method.Options(**options)), source, toy_batches(source.task), Setting(tmp_path / "a", "a", plenty)
    )
    seen: list[torch.Tensor] = []

    class Watched:
        """`width`, which also keeps the dense stream behind the last block."""

        def __getattr__(self, key: str) -> Any:
            return getattr(self.inner, key)

        def __init__(self) -> None:
            self.inner = width(width.Options(sparsity=0.3, allocation="uniform"))

        def change_block(self, block: Any) -> Any:
            if block.index == block.count - 1:
                seen.append(block.forward(block.dense, block.dense_in(0), 0))
            return self.inner.change_block(block)

    batches = toy_batches(source.task)
    apply_pass(Watched(), first, batches, Setting(tmp_path / "b", "b", plenty))  # type: ignore[arg-type]
    model = first.load()
    final: list[torch.Tensor] = []
    model.base_model.layers[-1].register_forward_hook(lambda _, __, out: final.append(out))
    with torch.no_grad():
        model(pixel_values=torch.as_tensor(next(iter(batches))["pixel_values"]))
    torch.testing.assert_close(seen[0], final[0], atol=1e-5, rtol=0)


@dataclass
class Layer:
    """Widths of a block, as much as operations need."""

    residual: tuple[int, int, int] = (8, 8, 8)
    num_attention_heads: int = 2
    intermediate_size: int = 32


def test_a_search_takes_tokens_where_that_loses_least() -> None:
    """Losses that add up, of which those of block 3 are least: the search finds the order, and stops at the budget."""
    shapes: Any = types.SimpleNamespace(layers=[Layer() for _ in range(6)], head_dim=4)
    price = {0: 8.0, 2: 1.0, 4: 3.0}
    room = Room(sorted(price), 48, 1, half=False)

    def gone(counts: dict[int, int]) -> dict[int, int]:
        lefts = [48, *counts.values()]
        return {block: a - b for block, a, b in zip(counts, lefts, lefts[1:], strict=False)}

    path = searched(shapes, room, 0.7, lambda counts: sum(price[b] * n**2 for b, n in gone(counts).items()))
    shares = [work(shapes, room, counts) / work(shapes, room, {}) for counts, _ in path]
    assert shares[-1] <= 0.7 < shares[-2] and shares == sorted(shares, reverse=True)
    assert gone(path[0][0]) == {2: 4}, "the first to go"
    final = gone(path[-1][0])
    assert final[2] > final.get(4, 0) and final[2] > final.get(0, 0)
    equal = even(shapes, room, 0.7)
    assert len(set(gone(equal).values())) == 1 and work(shapes, room, equal) / work(shapes, room, {}) <= 0.7


def test_counts_are_found_on_calibration_images(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("vit"))
    method = methods()["received"]
    made: Any = method(method.Options(flops=0.7))
    assert made.needs.calibration == "must" and not made.needs.foreseen
    batches = toy_batches(source.task)
    model, _ = apply_pass(made, source, batches, Setting(tmp_path, "t", 1 << 28))
    room = Room(range(3), 16, 1, half=False)
    counts = {r.block: r.keep - 1 for r in model.blueprint.reductions}
    assert work(source.shapes, room, counts) <= 0.7 * work(source.shapes, room, {})
    equal_steps, (taken,) = made.trials[0], [trial for trial in made.trials if trial.chosen]
    assert equal_steps.name == "equal steps" and len(made.trials) > 2
    assert taken.flops == pytest.approx(work(source.shapes, room, counts) / work(source.shapes, room, {}))
    within = [trial.divergence for trial in made.trials if trial.flops <= 0.7]
    assert min(within) <= taken.divergence <= equal_steps.divergence
    (note,) = made.notes
    found, equal = (float(number) for number in re.findall(r"(\d+\.\d+) (?:nats|with)", note))
    images = torch.cat([torch.as_tensor(batch["pixel_values"]) for batch in batches])
    with torch.no_grad():
        dense, ours = (m.load()(pixel_values=images).logits.log_softmax(-1) for m in (source, model))
    assert found <= equal and found == pytest.approx(float((dense.exp() * (dense - ours)).sum(-1).mean()), abs=1e-4)


@pytest.mark.parametrize(("name", "family"), [("evit", "deit"), ("tome", "vit")])
def test_what_the_head_does_not_read_may_go_at_the_end(pico: Pico, name: str, family: str) -> None:
    source = open_model(pico(family))
    plain, short = (planned(source, name, {"r": 2, "head_only": only}) for only in (False, True))
    assert [r.block for r in short.blueprint.reductions] == [0, 1, 2]
    assert count_flops(short, 0) < count_flops(plain, 0)
    images = pixels(source, 2)
    with torch.no_grad():
        outputs = [loaded(source, folder)(pixel_values=images).logits for folder in (plain, short)]
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)


def test_a_head_that_reads_patches_keeps_them(pico: Pico) -> None:
    with pytest.raises(UsageError, match="head_only: the outputs of this model depend on its patches"):
        planned(open_model(pico("dinov2")), "received", {"keep": 0.5, "head_only": True})


def test_blocks_that_need_not_know_stay_stock(pico: Pico) -> None:
    source = open_model(pico("vit", num_hidden_layers=4))
    kinds = {
        name: [isinstance(block, ReducedBlock) for block in planned(source, name, options).skeleton().vit.layers]
        for name, options in {"received": {"keep": 0.5, "layers": [2]}, "spatten": {"keep": 0.5, "layers": [3]}}.items()
    }
    assert kinds == {"received": [False, True, False, False], "spatten": [True, True, True, False]}


def test_random_scores_are_spread_and_the_same_everywhere() -> None:
    scores = random_score(Seen(torch.zeros(2, 196, 3, 8)), lambda s: s)
    assert torch.equal(scores[0], scores[1]) and scores.min() >= 0 and scores.max() < 1
    below = scores[0] < 0.5
    runs = (below[1:] != below[:-1]).sum()
    assert 70 < below.sum() < 126 and 70 < runs < 126, "neither half is empty, nor do halves take turns"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"r": 30}, {0: 70, 1: 40, 2: 10, 3: 1}),
        ({"r": 10, "taper": "linear"}, {0: 80, 1: 67, 2: 60}),
        ({"keep": 0.5}, {1: 50, 2: 25, 3: 12}),
        ({"keep": 0.5, "layers": (2, 4)}, {1: 50, 3: 25}),
        ({"tokens": 25, "layers": (1, 2)}, {0: 50, 1: 25}),
        ({"counts": (90, 90, 60, 30)}, {0: 90, 2: 60, 3: 30}),
    ],
)
def test_schedules(options: dict[str, Any], wanted: dict[int, int]) -> None:
    assert schedule("t", ScheduleOptions(**options), 4, 100, half=False) == wanted


def test_pairs_take_half_at_most() -> None:
    assert schedule("t", ScheduleOptions(keep=0.2, layers=(1, 2)), 4, 101, half=True) == {0: 51, 1: 26}


def test_schedules_that_cannot_be_are_refused(pico: Pico) -> None:
    for options in ({}, {"keep": 0.5, "r": 3}, {"keep": 0.5, "taper": "linear"}, {"r": 1, "layers": (3, 2)}):
        with pytest.raises(ValidationError, match="exactly one of|taper|rising"):
            ScheduleOptions(**options)
    source = open_model(pico("vit"))
    with pytest.raises(UsageError, match="evit.layers: block 9 of a model that has 3"):
        planned(source, "evit", {"keep": 0.5, "layers": (2, 9)})
    with pytest.raises(UsageError, match="evit.counts: 2 numbers for 3 blocks"):
        planned(source, "evit", {"counts": (9, 8)})
    with pytest.raises(UsageError, match="evit.flops: 0.1 cannot be reached: the fewest tokens leave 0.27"):
        planned(source, "evit", {"flops": 0.1})
    with pytest.raises(ModelError, match="clca: .*none of them is to go"):
        planned(source, "clca", {"keep": 0.5, "layers": (2, 3)})


@pytest.mark.parametrize(
    "options",
    [
        {"select": "bipartite"},
        {"score": "mean_key"},
        {"score": "cascade", "dropped": "fuse"},
        {"dropped": "propagate", "keep_norm": True},
    ],
)
def test_parts_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="goes with"):
        methods()["token-reduction"].Options(keep=0.5, **options)
