"""The width mechanism on pico-models of every family: exact plans, exact cuts, refits that help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from compressor.architectures.tasks import TASKS
from compressor.data.kinds import Batches
from compressor.errors import ModelError
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.passes.structure._width.fisher import fisher_traces
from compressor.passes.structure._width.refine import vertex
from compressor.passes.structure._width.surveys import angular_distances
from compressor.passes.structure.width import Width, WidthOptions
from compressor.passes.surgery.backward import inputs_of, sampled_labels
from compressor.walk import Walk
from compressor.walk.sampling import stride
from tests.core.test_loading import COVERED
from tests.core.toy import toy_batches

Pico = Callable[..., Path]
PLENTY = 1 << 30


def batches_for(task: str) -> Batches:
    """Enough tokens that least squares has something to fit."""
    return toy_batches(task, count=8, tokens=48)


def narrow(source: ModelFolder, work: Path, batches: Batches | None = None, **options: Any) -> ModelFolder:
    setting = Setting(work=work, fingerprint="width", cache_bytes=PLENTY)
    method = Width(WidthOptions(**options))
    return apply_pass(method, source, batches or batches_for(source.task), setting)[0]


def outputs(model: ModelFolder, batches: Batches) -> torch.Tensor:
    """All outputs of a model over batches, [values]; padded tokens are left out."""
    module, found = model.load(), []
    for inputs in batches:
        with torch.no_grad():
            out = module(**{name: torch.as_tensor(array) for name, array in inputs.items()})[0]
        mask = inputs.get("attention_mask")
        found.append(out[torch.as_tensor(mask).bool()].flatten() if mask is not None else out.flatten())
    return torch.cat(found)


def deviation(model: ModelFolder, source: ModelFolder) -> float:
    """Relative squared difference of two models' outputs."""
    batches = batches_for(source.task)
    dense = outputs(source, batches)
    return float((outputs(model, batches) - dense).square().sum() / dense.square().sum())


def twins(source: ModelFolder, folder: Path) -> ModelFolder:
    """Return the model with every second FFN channel a copy of the one before it: half of them can go for nothing."""
    module = source.load()
    paths = [f".{path}" for path in source.family.ffn.reader_paths]
    for name, parameter in module.named_parameters():
        if any(name.endswith(path + end) for path in paths for end in (".weight", ".bias")):
            parameter.data[1::2] = parameter.data[::2]
    module.save_pretrained(folder)
    return open_model(folder, task=source.task)


@pytest.mark.parametrize("family", COVERED)
def test_redundant_channels_go_for_nothing(pico: Pico, family: str, tmp_path: Path) -> None:
    source = twins(open_model(pico(family)), tmp_path / "twins")
    options = {"sparsity": 0.5, "round_to": 2, "damping": 1e-6, "allocation": "uniform"}
    found = narrow(source, tmp_path / "best", **options)
    assert [layer.intermediate_size for layer in found.shapes.layers] == [50] * len(found.shapes.layers)
    assert deviation(found, source) < 1e-5
    blind = narrow(source, tmp_path / "blind", **options, importance="random", reconstruct=False)
    assert deviation(blind, source) > 1e-3


@pytest.mark.parametrize("family", COVERED)
def test_every_refit_brings_the_output_nearer(pico: Pico, family: str, tmp_path: Path) -> None:
    source = open_model(pico(family))
    steps = [{"reconstruct": False}, {"refit": False, "refine": False}, {"refine": False}, {}]
    found = [
        deviation(narrow(source, tmp_path / str(i), sparsity=0.4, allocation="uniform", **step), source)
        for i, step in enumerate(steps)
    ]
    assert found[1] < found[0]
    assert min(found[2:]) < found[1]


@pytest.mark.parametrize("allocation", ["global", "cfsp", pytest.param("uniform", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "importance",
    [
        "obs",
        "flap",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("act", "cfsp", "magnitude", "random")),
    ],
)
def test_every_choice_hits_the_plan(pico: Pico, importance: str, allocation: str, tmp_path: Path) -> None:
    source = open_model(pico("qwen2"))
    options = {"importance": importance, "allocation": allocation, "sparsity": 0.3, "round_to": 4}
    planned = Width(WidthOptions(**options)).plan(source, Target())
    found = narrow(source, tmp_path, **options)
    assert found.parameters == source.with_blueprint(planned).parameters < source.parameters
    assert all(layer.intermediate_size % 4 == 0 for layer in found.shapes.layers)


def test_a_plain_cut_copies_rows_and_columns(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("llama"))
    found = narrow(source, tmp_path, sparsity=0.3, importance="magnitude", allocation="uniform", reconstruct=False)
    old, new = source.load().model.layers[1].mlp, found.load().model.layers[1].mlp
    kept = [i for i, row in enumerate(old.gate_proj.weight) if (new.gate_proj.weight == row).all(1).any()]
    assert len(kept) == len(new.gate_proj.weight) == 72
    assert torch.equal(new.gate_proj.weight, old.gate_proj.weight[kept])
    assert torch.equal(new.up_proj.weight, old.up_proj.weight[kept])
    assert torch.equal(new.down_proj.weight, old.down_proj.weight[:, kept])
    norms = old.gate_proj.weight.norm(dim=1) * old.up_proj.weight.norm(dim=1) * old.down_proj.weight.norm(dim=0)
    assert kept == norms.topk(72).indices.sort().values.tolist()


@pytest.mark.parametrize("family", COVERED)
def test_uniform_widths_load_in_stock_transformers(pico: Pico, family: str, tmp_path: Path) -> None:
    found = narrow(open_model(pico(family)), tmp_path, sparsity=0.25, allocation="uniform")
    stock = getattr(transformers, TASKS[found.task].auto_class).from_pretrained(found.path).eval()
    inputs = {name: torch.as_tensor(array) for name, array in next(iter(batches_for(found.task))).items()}
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs)[0], found.load()(**inputs)[0])


def test_padding_does_not_count(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("bert"))

    def padded(filler: int) -> Batches:
        made = [dict(inputs) for inputs in batches_for(source.task)]
        for inputs in made:
            inputs["input_ids"] = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], filler)
        return Batches(lambda: iter(made), len(made))

    first, second = (narrow(source, tmp_path / str(f), padded(f), sparsity=0.3) for f in (3, 200))
    for name in first.weights.names():
        torch.testing.assert_close(first.weights.tensor(name), second.weights.tensor(name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", COVERED)
def test_fisher_traces_are_those_of_autograd_over_the_whole_model(pico: Pico, family: str, tmp_path: Path) -> None:
    source = open_model(pico(family))
    batches = batches_for(source.task)
    walk = Walk(source, batches, work=tmp_path, cache_bytes=PLENTY)
    inputs = [inputs_of(walk, view, 2) for view in walk.survey(keep=True, every=2)]
    found = fisher_traces(walk, inputs, every=2, share=2, seed=5)

    module = source.load()
    blocks = module.base_model.get_submodule(source.family.blocks)
    written: list[torch.Tensor] = []

    def shift(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        written.append(torch.zeros_like(out).requires_grad_())
        return out + written[-1]

    for block in blocks:
        block.get_submodule(source.family.ffn.writer).register_forward_hook(shift)
    generator = torch.Generator().manual_seed(5)
    sums, counts = [0.0] * len(blocks), [0] * len(blocks)
    for inputs in list(batches)[::4]:
        written.clear()
        out = module(**{name: torch.as_tensor(array) for name, array in inputs.items()})[0]
        mask = torch.as_tensor(inputs["attention_mask"]).bool() if "attention_mask" in inputs else None
        if source.task == "feature-extraction":
            signs = (torch.randint(0, 2, out.shape, generator=generator) * 2 - 1).float()
            loss = (out * signs)[mask].sum()
        else:
            flat = out.reshape(-1, out.shape[-1])
            labels = sampled_labels(flat, generator)
            loss = torch.nn.functional.cross_entropy(flat, labels, reduction="sum")
        for i, gradient in enumerate(torch.autograd.grad(loss, written)):
            seen = gradient.reshape(-1, gradient.shape[-1]) if mask is None else gradient.reshape(*mask.shape, -1)[mask]
            sums[i], counts[i] = sums[i] + float(seen.square().sum()), counts[i] + seen.numel()
    assert found == pytest.approx([total / count for total, count in zip(sums, counts, strict=True)], rel=1e-3)


def test_a_step_that_goes_too_far_is_shortened_to_the_least_error() -> None:
    def error(share: float) -> float:
        return 3 * (share - 0.3) ** 2 + 1

    assert vertex(error(0), error(1), slope=0.9) == pytest.approx(0.3)  # the derivative at 0 is -1.8


def test_angular_distances_are_those_of_stock_hidden_states(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("llama"))
    batches = batches_for(source.task)
    found = angular_distances(Walk(source, batches, work=tmp_path, cache_bytes=PLENTY), every=1)
    states: list[list[torch.Tensor]] = []
    module = source.load()
    for inputs in batches:
        with torch.no_grad():
            states.append(list(module(torch.as_tensor(inputs["input_ids"]), output_hidden_states=True).hidden_states))
    # The last hidden state that transformers reports is normed, so the last block is left out.
    for i in range(len(found) - 1):
        before, after = (torch.cat([s[j].flatten(0, 1) for s in states]).double() for j in (i, i + 1))
        cosine = (before * after).sum(1) / before.norm(dim=1) / after.norm(dim=1)
        assert found[i] == pytest.approx(float((cosine.acos() / np.pi).mean()), rel=1e-4)


def test_calibration_is_thinned_to_what_the_channels_need(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_model(pico("llama"))
    walk = Walk(source, toy_batches(source.task, count=12, tokens=50), work=tmp_path, cache_bytes=PLENTY)
    assert stride(walk, 1) == 1
    monkeypatch.setattr("compressor.walk.sampling.LEAST_TOKENS", 0)
    assert stride(walk, 1) == 12
    assert stride(walk, 4) == 3
    assert stride(walk, 1000) == 1


@pytest.mark.parametrize("name", ["cfsp", "flap", "magnitude"])
def test_presets_are_the_mechanism_with_choices_made(pico: Pico, name: str, tmp_path: Path) -> None:
    source = open_model(pico("llama"))
    fixed = {
        "cfsp": {"importance": "cfsp", "allocation": "cfsp"},
        "flap": {"importance": "flap", "allocation": "global", "weighting": "residual"},
        "magnitude": {"importance": "magnitude", "allocation": "uniform"},
    }[name]
    method = methods()[name]
    setting = Setting(work=tmp_path / "preset", fingerprint="x", cache_bytes=PLENTY)
    preset = apply_pass(method(method.Options(sparsity=0.4)), source, batches_for(source.task), setting)[0]
    plain = narrow(source, tmp_path / "plain", sparsity=0.4, **fixed)
    assert preset.shapes == plain.shapes
    assert all(torch.equal(preset.weights.tensor(n), plain.weights.tensor(n)) for n in plain.weights.names())


@pytest.mark.parametrize("options", [{"sparsity": 0}, {"sparsity": 1.0}, {"sparsity": 0.5, "importance": "obss"}, {}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WidthOptions(**options)


def test_a_model_too_narrow_is_refused(pico: Pico) -> None:
    with pytest.raises(ModelError, match="round_to"):
        Width(WidthOptions(sparsity=0.5, round_to=128)).plan(open_model(pico("llama")), Target())
