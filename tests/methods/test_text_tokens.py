"""Token methods in text encoders: against the papers in float64, text by text, whatever else is in the batch."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.data.kinds import Batches
from compressor.errors import CompressorError, ModelError, UsageError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.remote_code import remote_code
from compressor.measure.embedding import pool
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.blueprint import Reduction, read_blueprint
from compressor.model.config import config_for
from compressor.model.cost import count_flops
from compressor.model.folder import ModelFolder, open_model
from compressor.model.token_texts import kept_count, kept_counts
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from tests.methods.test_tokens import loaded, planned
from tests.methods.text_papers import TEXT_PRESETS, papers_states

Pico = Callable[..., Path]
LENGTHS = (23, 14, 6, 2, 1)
EVERY_KIND = (
    Reduction(0, 0, "mean_key", "bipartite", "merge", "log_size", share=800, beyond=2, closing=1),
    Reduction(1, 0, "cascade", "topk", "merge", "log_size", share=600, beyond=2, closing=1),
    Reduction(2, 0, "value_norm", "topk", "drop", "log_size", heads="max", share=500, beyond=2, closing=1),
)


def texts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a padded batch of random tokens."""
    longest = max(lengths)
    ids = torch.randint(5, 300, (len(lengths), longest), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def states(module: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(module(**inputs)[0])


@pytest.fixture
def every_kind(pico: Pico) -> tuple[ModelFolder, ModelFolder]:
    """A text encoder with a reduction of another kind in each of three blocks, and a block behind them."""
    source = open_model(pico("bert", num_hidden_layers=4))
    return source, source.with_blueprint(replace(source.blueprint, reductions=EVERY_KIND))


@pytest.mark.parametrize("name", sorted(TEXT_PRESETS))
def test_a_padded_batch_gives_what_the_paper_says_of_each_text(pico: Pico, name: str) -> None:
    step, options, biased = TEXT_PRESETS[name]
    source = open_model(pico("bert", num_hidden_layers=4))
    folder = planned(source, name, options)
    dense, module, inputs = source.load().double(), loaded(source, folder).double(), texts()
    found = states(module, inputs)
    assert found.shape == states(dense, inputs).shape, "every token has hidden states, as the user's pooling expects"
    shares = {r.block: r.share for r in folder.blueprint.reductions}
    assert len(shares) == 2
    for row, length in enumerate(LENGTHS):
        ids = inputs["input_ids"][row, :length]
        wanted = papers_states(dense, ids, step, shares, biased)
        torch.testing.assert_close(found[row, :length], torch.from_numpy(wanted), atol=1e-8, rtol=0)
    assert not torch.allclose(found[0], states(dense, inputs)[0], atol=1e-3), "something was reduced"


@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification"])
def test_a_text_does_not_depend_on_its_batch(pico: Pico, kind: str) -> None:
    source = open_model(pico("bert", architecture=kind, num_hidden_layers=4))
    folder = source.with_blueprint(replace(source.blueprint, reductions=EVERY_KIND))
    module, inputs = loaded(source, folder), texts()
    together = states(module, inputs)
    for row, length in enumerate(LENGTHS):
        alone = states(module, {name: value[row : row + 1, :length] for name, value in inputs.items()})
        ours = together[row, :length] if kind == "BertModel" else together[row]
        torch.testing.assert_close(alone[0], ours, atol=1e-5, rtol=0)


def test_graph_and_modelling_file_compute_the_same(every_kind: tuple[ModelFolder, ModelFolder], tmp_path: Path) -> None:
    source, folder = every_kind
    wanted, inputs = states(loaded(source, folder), texts()).numpy(), texts()
    real = inputs["attention_mask"].numpy() > 0
    text, config = remote_code(folder, config_for(source, folder.blueprint, None))
    module = types.ModuleType("modeling_compressed")
    exec(compile(text, "modeling_compressed.py", "exec"), module.__dict__)
    model = getattr(module, config["architectures"][0])(module.CompressedConfig.from_dict(config)).eval()
    model.load_state_dict(source.load().state_dict())
    np.testing.assert_allclose(states(model, inputs).numpy()[real], wanted[real], atol=1e-5)
    export_onnx(folder, tmp_path, OnnxOptions())
    runner = OnnxRunner(tmp_path)
    np.testing.assert_allclose(
        runner.forward({name: value.numpy() for name, value in inputs.items()})[real], wanted[real], atol=1e-4
    )
    for row in (0, 3, 4):
        length = LENGTHS[row]
        alone = {name: value.numpy()[row : row + 1, :length] for name, value in inputs.items()}
        np.testing.assert_allclose(runner.forward(alone)[0], wanted[row, :length], atol=1e-4)


def test_config_states_shares(every_kind: tuple[ModelFolder, ModelFolder]) -> None:
    source, folder = every_kind
    config = config_for(source, folder.blueprint, None)
    stated = types.SimpleNamespace(**{**source.config.to_dict(), **config})
    assert read_blueprint(stated, source.family).reductions == EVERY_KIND


def test_a_mean_over_the_text_weighs_merged_tokens_by_what_they_stand_for(pico: Pico) -> None:
    source = open_model(pico("bert", num_hidden_layers=3))
    module, inputs = loaded(source, planned(source, "tome", {"keep": 0.6, "layers": (2,)})), texts((20,))
    last, left = module.base_model.encoder.layer[-1], []
    last.register_forward_hook(lambda block, _, __: left.append(block.tracks.last))
    hidden = states(module, inputs).numpy().astype(np.float64)
    sizes = left[0].sizes[0, :, 0].numpy()
    assert sizes.sum() == 20 and len(sizes) == 13
    tokens = [hidden[0, int(np.argmax(left[0].home[0].numpy() == place))] for place in range(13)]
    mean = pool(hidden, inputs["attention_mask"].numpy().astype(np.float64), ("mean",))
    np.testing.assert_allclose(mean[0], np.average(tokens, axis=0, weights=sizes), atol=1e-6)


@pytest.mark.parametrize(("share", "beyond"), [(1, 1), (333, 1), (700, 1), (500, 16), (999, 3)])
def test_counts_come_from_each_length(share: int, beyond: int) -> None:
    lengths = torch.arange(1, 70)
    counts = kept_counts(lengths, share, beyond)
    assert counts.tolist() == [kept_count(int(n), share, beyond) for n in lengths]
    assert all(counts[: beyond + 1] == lengths[: beyond + 1]), "short texts lose none"
    assert (counts[1:] >= 2).all() and (counts.diff() >= 0).all(), "[CLS] and [SEP] stay; no text outgrows the longest"
    exact = lengths - (lengths - beyond).clamp(min=0) * (1 - share / 1000)
    assert ((counts - exact) >= -1e-4).all() and ((counts - exact) < 1).all()


def test_short_texts_are_left_alone(pico: Pico) -> None:
    source = open_model(pico("bert", num_hidden_layers=3))
    folder = planned(source, "power-bert", {"keep": 0.5, "beyond": 16})
    module, inputs = loaded(source, folder), texts((40, 17, 9))
    found, dense = states(module, inputs), states(source.load(), inputs)
    for row, length in ((1, 17), (2, 9)):
        torch.testing.assert_close(found[row, :length], dense[row, :length], atol=1e-5, rtol=0)
    assert not torch.allclose(found[0], dense[0], atol=1e-3)
    assert count_flops(folder, 16) == pytest.approx(count_flops(source, 16), rel=0.02)
    assert count_flops(folder, 64) < 0.75 * count_flops(source, 64)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tome", {"r": 3}, "tome.r: texts have lengths of their own"),
        ("received", {"counts": (9, 8, 7)}, "received.counts: texts"),
        ("evit", {"keep": 0.5}, "evit: dropped fuse is for images"),
        ("diffrate", {"keep": 0.5}, "merged 0.5 is for images"),
        ("zero-tprune", {"keep": 0.5}, "zero-tprune: select topk_alike is for images"),
        ("received", {"keep": 0.5, "head_only": True}, "received.head_only"),
        ("power-bert", {"shares": (0.5, 0.4)}, "power-bert.shares: 2 numbers for 3 blocks"),
    ],
)
def test_what_is_for_images_is_refused(pico: Pico, name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        planned(open_model(pico("bert", num_hidden_layers=3)), name, options)


@pytest.mark.parametrize("family", ["clip_text_model", "siglip_text_model", "llama", "siglip_vision_model"])
def test_families_whose_tokens_must_keep_their_places_are_refused_by_name(pico: Pico, family: str) -> None:
    source = open_model(pico(family))
    method = methods()["received"]
    with pytest.raises(ModelError, match=f"family {source.family.name}: tokens can be reduced only"):
        method(method.Options(keep=0.5)).plan(source, Target())


def test_no_gain_is_an_error(pico: Pico) -> None:
    with pytest.raises(CompressorError, match="no token of a text goes"):
        planned(open_model(pico("bert", num_hidden_layers=3)), "received", {"keep": 0.9999, "layers": (1,)})


@pytest.mark.parametrize("name", ["gptq", "int8-static", pytest.param("width", marks=pytest.mark.exhaustive)])
def test_passes_behind_it_are_calibrated_on_the_tokens_that_are_left(pico: Pico, tmp_path: Path, name: str) -> None:
    """Padding does not count: the same weights whatever stands at padding, and the dense stream is the model's own."""
    source = open_model(pico("bert", num_hidden_layers=3))
    tome = methods()["tome"]
    first, _ = apply_pass(
        tome(tome.Options(keep=0.6, layers=(1, 2))), source, Batches(tuple, 0), Setting(tmp_path / "0", "0", 1 << 28)
    )
    method, made = methods()[name], []
    options = {"width": {"sparsity": 0.3, "allocation": "uniform"}, "gptq": {"group_size": 16}}.get(name, {})
    for seed in (1, 2):
        inputs = {key: value.numpy() for key, value in texts((21, 12, 7)).items()}
        noise = texts((21, 21, 21), seed)["input_ids"].numpy()
        inputs["input_ids"] = np.where(inputs["attention_mask"] > 0, inputs["input_ids"], noise)
        setting = Setting(tmp_path / str(seed), str(seed), 1 << 28)
        model, _ = apply_pass(method(method.Options(**options)), first, Batches(lambda i=inputs: iter([i]), 1), setting)
        made.append(states(model.load(), {key: torch.as_tensor(value) for key, value in inputs.items()}))
    real = texts((21, 12, 7))["attention_mask"] > 0
    torch.testing.assert_close(made[0][real], made[1][real], atol=1e-4, rtol=0)
    assert model.blueprint.reductions == first.blueprint.reductions
