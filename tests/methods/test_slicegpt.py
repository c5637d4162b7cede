"""SliceGPT on pico-models of every family that can be rotated, and on a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.architectures import StackShapes
from compressor.data.kinds import Batches
from compressor.data.reading import DataRequest, load_data, model_batches
from compressor.errors import ModelError
from compressor.model.blocks import fold_scales
from compressor.model.folder import ModelFolder, open_model
from compressor.model.modules import base_of, optional_submodules
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.passes.numerics.rotation import Projection, ones_free
from compressor.passes.structure._slice.block import set_readers
from compressor.passes.structure._slice.sensitivity import survey_sensitivity
from compressor.passes.structure._slice.shapes import parameter_count, sliced_shapes
from compressor.passes.structure.slicegpt import SliceGPT
from compressor.passes.surgery.backward import sampled_labels
from compressor.walk.sampling import limited

Make = Callable[..., Path]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "vit", "deit", "dinov2")
SAMPLES, LENGTH = 24, 32


def batches_for(model: ModelFolder, *, padded: bool = False) -> Batches:
    """Random inputs of the right kind, seeded; text batches of 8, padded ones with masks of different lengths."""
    rng = np.random.default_rng(0)
    if model.task == "image-classification":
        pixels = [rng.standard_normal((8, 3, 32, 32)).astype(np.float32) for _ in range(SAMPLES // 8)]
        return Batches(lambda: ({"pixel_values": p} for p in pixels), len(pixels))
    ids = [rng.integers(2, 320, (8, LENGTH)) for _ in range(SAMPLES // 8)]
    masks = [(np.arange(LENGTH)[None] < rng.integers(9, LENGTH + 1, (8, 1))).astype(np.int64) for _ in ids]
    made = [{"input_ids": i, **({"attention_mask": m} if padded else {})} for i, m in zip(ids, masks, strict=True)]
    return Batches(lambda: made, len(made))


def run(model: ModelFolder, work: Path, batches: Batches | None = None, **options: Any) -> tuple[ModelFolder, Any]:
    method = SliceGPT(SliceGPT.Options(**options))
    return apply_pass(method, model, batches or batches_for(model), Setting(work, "fingerprint", 1 << 26))


def outputs(model: Any, batches: Batches) -> torch.Tensor:
    with torch.no_grad():
        made = [model(**{k: torch.as_tensor(v) for k, v in inputs.items()}).logits for inputs in batches]
    return torch.cat(made)


def confined(model: ModelFolder, folder: Path, rank: int) -> ModelFolder:
    """Write a copy of a model whose residual stream never leaves a random subspace (beside its mean, for LayerNorm)."""
    module: Any = model.load()
    width, centre = model.shapes.hidden_size, model.family.norm == "layer"
    generator = torch.Generator().manual_seed(3)
    frame = ones_free(width).float() if centre else torch.eye(width)
    inner = torch.linalg.qr(torch.randn(frame.shape[1], rank - centre, generator=generator)).Q
    keep = frame @ inner @ inner.T @ frame.T + (torch.full((width, width), 1 / width) if centre else 0)
    base = base_of(module)
    for writer in optional_submodules(base, model.family.embeddings):
        weight: Any = writer.weight
        if isinstance(writer, torch.nn.Embedding):
            weight.data = weight.data @ keep
            continue
        weight.data = (keep @ weight.data.flatten(1)).reshape(weight.shape)
        writer.bias.data = writer.bias.data @ keep  # type: ignore[union-attr, operator]
    for path in model.family.embedding_biases:
        parent, _, name = path.rpartition(".")
        vector = getattr(base.get_submodule(parent), name, None)
        if vector is not None:
            vector.data = vector.data @ keep
    for block in base.get_submodule(model.family.blocks).children():
        fold_scales(block, model.family)  # what leaves a writer is then what the stream gets
        for path in (model.family.attention.output, model.family.ffn.writer):
            linear: Any = block.get_submodule(path)
            linear.weight.data = keep @ linear.weight.data
            if linear.bias is not None:
                linear.bias.data = linear.bias.data @ keep
    if model.blueprint.tied and centre:
        # A tied head behind a LayerNorm is only exact where the norm scales all coordinates alike and shifts none.
        norm: Any = base.get_submodule(str(model.family.final_norm))
        norm.weight.data.fill_(1.3)
        norm.bias.data.zero_()
    module.save_pretrained(folder)
    return open_model(folder)


@pytest.mark.parametrize("rotation", ["shared", "per_layer"])
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_inside_the_kept_span_loses_nothing(
    family: str, refit: bool, rotation: str, pico: Make, tmp_path: Path
) -> None:
    """d = 48 with a stream of rank 24: slicing to 24 is exact, whatever the norms, biases and ties."""
    model = confined(open_model(pico(family)), tmp_path / "confined", 24)
    full = {"rotation": rotation, "refit": refit, "split": "hidden", "damping": 1e-5}
    reduction = 1 - reshaped(model, _hidden(model, 24, rotation)).parameters / model.parameters
    new, changes = run(model, tmp_path / "work", reduction=reduction - 1e-6, **full)
    assert {w for layer in new.shapes.layers for w in layer.residual} == {24}
    assert new.shapes.shortcuts == (rotation == "per_layer")
    batches = batches_for(model)
    dense, sliced = outputs(model.load(), batches), outputs(new.load(), batches)
    assert float((dense - sliced).abs().max()) < 2e-3 * float(dense.std())
    if refit:
        assert all(change.figures["ffn_writer_error"] < 1e-3 for change in changes)


@pytest.mark.parametrize("width", [4, 11])
def test_readers_without_a_bias_read_the_shift_of_their_norm(width: int) -> None:
    """A LayerNorm with scale and shift before readers with and without bias, on streams inside the kept span."""
    generator = torch.Generator().manual_seed(0)
    norm, readers = torch.nn.LayerNorm(12), [torch.nn.Linear(12, 9, bias=bias) for bias in (False, True)]
    for parameter in [*norm.parameters(), *readers[0].parameters(), *readers[1].parameters()]:
        parameter.data = torch.randn(parameter.shape, generator=generator)
    basis = torch.linalg.qr(torch.randn(11, 11, generator=generator, dtype=torch.float64)).Q[:, :width]
    site = Projection.of(ones_free(12) @ basis, centre=True)
    stream = torch.randn(30, site.width, generator=generator, dtype=torch.float64) @ site.matrix.T
    wanted = [reader(norm(stream.float())) for reader in readers]
    set_readers(norm, readers, site.matrix, site)
    found = [reader(norm(site.stream(stream).float())) for reader in readers]
    assert readers[0].bias is None
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def reshaped(model: ModelFolder, shapes: StackShapes) -> ModelFolder:
    return model.with_blueprint(model.blueprint.with_shapes(shapes))


def _hidden(model: ModelFolder, hidden: int, rotation: str) -> StackShapes:
    from dataclasses import replace

    return replace(model.shapes.with_hidden(hidden), shortcuts=rotation == "per_layer")


@pytest.mark.parametrize("rotation", ["shared", "per_layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plan_is_exact_and_removes_at_least_the_share_asked_for(
    family: str, rotation: str, pico: Make, tmp_path: Path
) -> None:
    model = open_model(pico(family))
    planned = SliceGPT(SliceGPT.Options(reduction=0.3, rotation=rotation)).plan(model, Target()).shapes
    new, changes = run(model, tmp_path / "work", reduction=0.3, rotation=rotation, survey_samples=8)
    assert new.shapes == planned and len(changes) == len(planned.layers)
    stored = sum(int(torch.tensor(new.weights.shape(name)).prod()) for name in new.weights.names())
    assert stored == new.parameters == reshaped(model, planned).parameters
    removed = 1 - new.parameters / model.parameters
    assert 0.3 <= removed < (0.4 if rotation == "shared" else 0.55)  # shortcuts leave few choices on 48 dimensions
    assert new.blueprint.tied == model.blueprint.tied


@pytest.mark.parametrize("shortcuts", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_as_the_skeleton_has_them(family: str, shortcuts: bool, pico: Make) -> None:
    from dataclasses import replace

    model = open_model(pico(family))
    model = reshaped(model, model.shapes.with_widths([24 + 8 * i for i in range(len(model.shapes.layers))]))
    count = parameter_count(model)
    for hidden, ffn in ((8, 8), (24, 40), (40, 56), (48, 8)):
        narrow = model.shapes.with_hidden(hidden).with_widths([ffn - i for i in range(len(model.shapes.layers))])
        narrow = replace(narrow, shortcuts=shortcuts)
        assert count(narrow) == reshaped(model, narrow).parameters


def test_labels_are_drawn_as_predicted() -> None:
    """40 000 draws of each row: frequencies within five standard errors of the softmax; no mass, no draw."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf], [-torch.inf, 3.0, -torch.inf, 3.0]])
    count = 40_000
    labels = sampled_labels(logits.repeat(count, 1), torch.Generator().manual_seed(5)).reshape(count, 2)
    for row, predicted in enumerate(logits.softmax(-1)):
        found = torch.bincount(labels[:, row], minlength=4) / count
        assert bool(((found - predicted).abs() <= 5 * (predicted * (1 - predicted) / count).sqrt()).all())


def test_only_as_many_batches_are_read_as_the_fits_need(pico: Make, tmp_path: Path) -> None:
    """Every second batch of 40: the same model as from those twenty alone."""
    model = open_model(pico("llama"))
    ids = np.random.default_rng(1).integers(2, 320, (40, 8, 128))
    made = [{"input_ids": part} for part in ids]
    options = {"reduction": 0.3, "survey_samples": 8, "tokens_per_channel": 1}
    run(model, tmp_path / "all", Batches(lambda: made, len(made)), **options)
    run(model, tmp_path / "half", Batches(lambda: made[::2], 20), **options)
    names = sorted(file.name for file in (tmp_path / "all").glob("block-*.safetensors"))
    assert names and all((tmp_path / "all" / n).read_bytes() == (tmp_path / "half" / n).read_bytes() for n in names)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_shared_rotation_gives_a_stock_model(family: str, pico: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = open_model(pico(family))
    new, _ = run(model, tmp_path / "work", reduction=0.25)
    config = json.loads((new.path / "config.json").read_text())
    assert "compression" not in config and config["hidden_size"] < 48 and config["head_dim"] == model.shapes.head_dim
    stock, report = AutoModelForCausalLM.from_pretrained(new.path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    batches = batches_for(model)
    torch.testing.assert_close(outputs(stock.eval(), batches), outputs(new.load(), batches))


@pytest.mark.parametrize("rotation", ["shared", "per_layer"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_refit_brings_the_logits_nearer(family: str, rotation: str, pico: Make, tmp_path: Path) -> None:
    model = open_model(pico(family))
    batches = batches_for(model)
    dense = outputs(model.load(), batches)

    def error(name: str, **options: Any) -> float:
        new, _ = run(model, tmp_path / name, reduction=0.3, rotation=rotation, split="hidden", **options)
        return float((outputs(new.load(), batches) - dense).square().mean())

    assert error("fitted") < 0.8 * error("projected", refit=False)


@pytest.mark.parametrize("dtype", ["auto", pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("rotation", ["shared", "per_layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_run_resumes_to_the_same_bytes(
    family: str, rotation: str, dtype: str, pico: Make, tmp_path: Path
) -> None:
    model = open_model(pico(family), dtype=dtype)
    work = tmp_path / "work"
    run(model, work, reduction=0.3, rotation=rotation)
    whole = {file.name: file.read_bytes() for file in work.glob("*.safetensors")}
    state = json.loads((work / "state.json").read_text())
    state["done"] = {key: note for key, note in state["done"].items() if key in ("findings", "block-0000")}
    (work / "state.json").write_text(json.dumps(state))
    run(model, work, reduction=0.3, rotation=rotation)
    assert {file.name: file.read_bytes() for file in work.glob("*.safetensors")} == whole


def test_padding_is_not_calibrated_on(pico: Make, tmp_path: Path) -> None:
    """Other tokens under the padding give the same model."""
    model = open_model(pico("llama"))
    batches = batches_for(model, padded=True)
    other = [{**b, "input_ids": np.where(b["attention_mask"] == 1, b["input_ids"], 5)} for b in batches]
    run(model, tmp_path / "a", batches, reduction=0.3)
    run(model, tmp_path / "b", Batches(lambda: other, len(other)), reduction=0.3)
    first, second = (open_model(tmp_path / name).load().state_dict() for name in "ab")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-3, rtol=1e-3, msg=name)


def test_sensitivity_is_the_gradient_of_the_loss(pico: Make, tmp_path: Path) -> None:
    """Against plain autograd through the whole model, with the same drawn labels."""
    from compressor.walk import Walk

    model = open_model(pico("mistral"))
    walk = Walk(model, batches_for(model), work=tmp_path, cache_bytes=1)
    with limited(walk, 8):
        assert len(walk.batches) == 1
        sites = survey_sensitivity(walk, seed=1)
        ids = torch.as_tensor(next(iter(walk.batches))["input_ids"])
    assert len(walk.batches) == 3
    module: Any = model.load()
    norms = [m for layer in module.model.layers for m in (layer.input_layernorm, layer.post_attention_layernorm)]
    norms.append(module.model.norm)
    generator, seen = torch.Generator().manual_seed(1), [[] for _ in norms]
    for i in range(8):
        kept: list[torch.Tensor] = []

        def note(_: Any, __: Any, out: torch.Tensor, kept: list[torch.Tensor] = kept) -> None:
            out.requires_grad_(True).retain_grad()
            kept.append(out)

        handles = [norm.register_forward_hook(note) for norm in norms]
        logits = module(input_ids=ids[i : i + 1]).logits[0]
        labels = sampled_labels(logits, generator)
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        for handle in handles:
            handle.remove()
        for slot, out in zip(seen, kept, strict=True):
            slot.append(out.grad[0])
    assert sites.tokens == [8 * LENGTH] * 7  # three blocks have six sites before the final norm: each its own group
    for site, norm in enumerate(norms):
        slopes = torch.cat(seen[site]).double() * norm.weight
        torch.testing.assert_close(sites.gradients[site], slopes.T @ slopes, rtol=1e-3, atol=1e-5)


def test_sites_share_sums_in_a_deep_model(pico: Make, tmp_path: Path) -> None:
    """Eight blocks: the sums of six groups add up to the sums of all sites; memory does not grow with depth."""
    from compressor.walk import Walk

    model = open_model(pico("mistral", num_hidden_layers=8))
    walk = Walk(model, batches_for(model), work=tmp_path, cache_bytes=1 << 24)
    with limited(walk, 8):
        sites = survey_sensitivity(walk)
    assert len(sites.streams) == len(sites.gradients) == 7
    assert sum(sites.tokens) == 17 * 8 * LENGTH
    width = model.shapes.hidden_size
    assert all(float(mean.trace()) == pytest.approx(width, rel=1e-3) for mean in sites.streams)


def test_an_encoder_with_norms_behind_the_sums_is_refused(pico: Make) -> None:
    with pytest.raises(ModelError, match="pre-norms and a head; family bert") as caught:
        SliceGPT(SliceGPT.Options(reduction=0.2)).plan(open_model(pico("bert")), Target())
    assert "width" in str(caught.value.hint)


def test_a_share_that_cannot_be_reached_is_refused(pico: Make) -> None:
    model = open_model(pico("llama"))
    with pytest.raises(ModelError, match=r"reduction 0\.999"):
        SliceGPT(SliceGPT.Options(reduction=0.999)).plan(model, Target())


def test_split_takes_little_from_the_channels_of_a_small_cut(pico: Make) -> None:
    model = open_model(pico("mistral", hidden_size=256, intermediate_size=704, num_attention_heads=8, vocab_size=2000))
    found = {r: sliced_shapes(model, r, multiple=8, ffn=True, shortcuts=False) for r in (0.1, 0.2, 0.3, 0.4, 0.5)}
    before = model.parameters
    for reduction, shapes in found.items():
        assert shapes.hidden_size % 8 == 0 and shapes.layers[0].intermediate_size % 8 == 0
        assert reduction <= 1 - reshaped(model, shapes).parameters / before < reduction + 0.006
        share = 1 - shapes.layers[0].intermediate_size / 704
        assert share == pytest.approx(2 * reduction**3, abs=0.06)


@pytest.mark.real
@pytest.mark.exhaustive
@pytest.mark.slow
def test_real_model_keeps_its_perplexity(data_root: Path, tmp_path: Path) -> None:
    """A fifth of all parameters off a trained Llama costs under 3 % perplexity; the basis is better than PCA's."""
    model = open_model(data_root / "models" / "llama-wt2")

    def windows(file: str, samples: int, purpose: Any) -> Any:
        request = DataRequest(str(data_root / "text" / file), (), samples, 256, 0, purpose)
        return load_data(request, model.task, model.path)

    calibration = model_batches(windows("wikitext2-train.txt", 32, "calibration"))
    ids = torch.as_tensor(windows("wikitext2-valid.txt", 24, "evaluation").windows)

    def loss(module: Any) -> float:
        with torch.no_grad():
            return float(module(input_ids=ids, labels=ids).loss)

    def ratio(name: str, **options: Any) -> float:
        new, _ = run(model, tmp_path / name, calibration, reduction=0.2, **options)
        return float(np.exp(loss(new.load()) - dense))

    dense = loss(model.load())
    found = ratio("found")
    assert found < 1.03
    assert found < ratio("pca", basis_steps=0) - 0.001
