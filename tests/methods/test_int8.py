"""Smoothing, ranges and the INT8 passes against independent float64 formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.kinds import Batches
from compressor.machine.processor import TARGETS, target_of, weight_bits
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.passes.quantize._int8.ranges import BINS, ChannelRanges, Histogram, range_of, scale_and_zero
from compressor.passes.quantize._int8.sensitivity import round_inputs
from compressor.passes.quantize._int8.smooth import find_factors, predicted_error
from compressor.storage.grids import GridSpec, fit_rows
from tests.core.test_loading import inputs_for
from tests.core.toy import toy_batches

Make = Callable[..., Path]


# Stated, so that nothing here depends on the processor that runs the tests: without VNNI weights have 7 bits.
VNNI = {"avx2": True, "avx512_vnni": True}


def quantize(pico: Make, family: str, work: Path, name: str = "int8-dynamic", *, data: bool = True, **o: Any) -> Any:
    source = open_model(pico(family))
    method = methods()[name](methods()[name].Options(**o))
    batches = toy_batches(source.task) if data else Batches(tuple, 0)
    setting = Setting(work=work, fingerprint="f", cache_bytes=1 << 30, target=Target(cpu=VNNI))
    model, changes = apply_pass(method, source, batches, setting)
    return source, model, changes


def outliers(tokens: int = 512, width: int = 24, outputs: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [1, tokens, width] of which two channels are far larger, and a weight [outputs, width]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, width, generator=generator)
    x[..., 3] *= 40
    x[..., 17] *= 15
    return x, torch.randn(outputs, width, generator=generator)


# -- processors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        ({"avx2": True, "avx512": True, "avx512_vnni": False, "avx_vnni": False, "amx_int8": False}, 7),
        ({"avx2": True, "avx512_vnni": True}, 8),
        ({"avx2": True, "avx_vnni": True}, 8),
        ({"avx2": True, "amx_int8": True}, 8),
        ({"neon": True, "dotprod": False}, 8),
        ({"neon": True, "dotprod": True}, 8),
        (None, 7),
    ],
)
def test_bits_of_weights_follow_the_processor(features: Any, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found, why = weight_bits(features)
    assert found == bits and why
    assert weight_bits(TARGETS[target_of(features)]) == (found, why), "a name says all that matters"


def test_seven_bits_never_overflow_sixteen() -> None:
    assert 2 * 255 * 127 > np.iinfo(np.int16).max >= 2 * 255 * 63


@pytest.mark.parametrize(("choice", "most"), [(True, 63), (False, 127)])
def test_reduce_range(pico: Make, tmp_path: Path, choice: bool, most: int) -> None:
    _, model, changes = quantize(pico, "bert", tmp_path, reduce_range=choice)
    assert {change.figures["weight_bits"] for change in changes} == {7.0 if choice else 8.0}
    for name in model.grids:
        codes = model.grid(name).exact_codes(model.weights.tensor(f"{name}.weight"), name).int() - 128
        assert int(codes.abs().max()) == most


def test_the_processor_that_will_run_it_decides_by_default(pico: Make) -> None:
    cls = methods()["int8-dynamic"]
    method: Any = cls(cls.Options())
    method.plan(open_model(pico("bert")), Target(cpu={"avx2": True}))
    assert method.levels == 63 and "VNNI" in method.reason
    method.plan(open_model(pico("bert")), Target(cpu=VNNI))
    assert method.levels == 127


# -- smoothing -----------------------------------------------------------------------------------------------------


def test_predicted_error_is_the_measured_one() -> None:
    x, weight = outliers(tokens=4096)
    ranges = ChannelRanges()
    ranges.add(x, None, padding=True)
    for factors in (torch.ones(24), find_factors(weight, ranges, 127)[0]):
        said = predicted_error(weight, ranges, factors, 127)
        given, rows = (x * factors)[0].double().numpy(), (weight / factors).double().numpy()
        step = (max(given.max(), 0) - min(given.min(), 0)) / 255
        zero = np.round(-min(given.min(), 0) / step)
        codes = (np.clip(np.round(given / step) + zero, 0, 255) - zero) * step
        row_steps = np.abs(rows).max(1, keepdims=True) / 127
        rounded = np.round(rows / row_steps) * row_steps
        inputs = np.square((codes - given) @ rows.T).sum(1).mean()
        weights = np.square(given @ (rounded - rows).T).sum(1).mean()
        assert said.inputs == pytest.approx(inputs, rel=0.15)
        assert said.weights == pytest.approx(weights, rel=0.5), "few weights: their errors are not uniform"


def test_factors_even_out_what_few_channels_determine() -> None:
    x, weight = outliers()
    ranges = ChannelRanges()
    ranges.add(x, None, padding=True)
    factors, ratio = find_factors(weight, ranges, 127)
    assert ratio < 0.2
    assert factors[3] < factors[17] < factors.median()
    exponents = factors.log2()
    assert torch.equal(exponents, exponents.round()), "powers of two"


def test_last_bits_of_the_ends_decide_nothing() -> None:
    """Another order of sums, on another processor, gives the same grid; and every value seen lies within."""
    for low, high in ((-1.0, 2.7), (-0.3, 0.001), (0.0, 5e-7), (-12.4, 0.0)):
        ends = {(h.low, h.high) for h in (Histogram(low * f, high * f) for f in (1.0, 1.0 - 1e-7, 1.0 - 3e-7))}
        ((least, most),) = ends
        assert low * 1.01 <= least <= low and high <= most <= high * 1.01


def test_even_inputs_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 256, 16, generator=generator) - 0.5
    x[0, 0], x[0, 1] = 0.5, -0.5
    weight = torch.ones(8, 16)
    ranges = ChannelRanges()
    ranges.add(x, None, padding=True)
    factors, ratio = find_factors(weight, ranges, 127)
    assert ratio == 1.0 and torch.equal(factors, torch.ones(16))


def test_padding_counts_for_ranges_only_where_the_runtime_sees_it() -> None:
    x = torch.tensor([[[1.0, 2.0], [50.0, -50.0]]])
    mask = torch.tensor([[True, False]])
    with_padding, without = ChannelRanges(), ChannelRanges()
    with_padding.add(x, mask, padding=True)
    without.add(x, mask, padding=False)
    assert with_padding.high[0].tolist() == [50.0, 2.0] and without.high[0].tolist() == [1.0, 2.0]
    assert with_padding.mean_squares.tolist() == without.mean_squares.tolist() == [1.0, 4.0]


def test_ranges_behind_a_norm() -> None:
    norm = nn.LayerNorm(3)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, -2.0, 0.1]), torch.tensor([0.0, 1.0, 5.0])
    ranges = ChannelRanges.behind_norm(norm, 0.0)
    torch.testing.assert_close(ranges.low[0], torch.tensor([-3.0, -5.0, 0.0]))
    torch.testing.assert_close(ranges.high[0], torch.tensor([3.0, 7.0, 5.3]))
    torch.testing.assert_close(ranges.mean_squares, torch.tensor([1.0, 5.0, 25.01], dtype=torch.float64))


# -- ranges --------------------------------------------------------------------------------------------------------


def filled(values: torch.Tensor) -> Histogram:
    histogram = Histogram(float(values.min()), float(values.max()))
    for part in values.chunk(5):
        histogram.add(part)
    return histogram


def test_minmax_and_percentile() -> None:
    values = torch.linspace(-1, 9, 100_001)
    histogram = filled(values)
    assert range_of(histogram, "minmax") == (-1.0, 9.0)
    low, high = range_of(histogram, "percentile", 99.0)
    assert (low, high) == (pytest.approx(np.quantile(values, 0.01), abs=0.01), pytest.approx(8.9, abs=0.01))


def test_mse_is_the_best_of_all_thresholds() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.empty(200_000).exponential_(generator=generator)
    values *= torch.where(torch.rand(200_000, generator=generator) < 0.5, -1.0, 1.0)
    histogram = filled(values)
    low, high = range_of(histogram, "mse")

    def lost(threshold: float) -> float:
        x = values.double().numpy()
        a, b = max(x.min(), -threshold), min(x.max(), threshold)
        step = (b - a) / 255
        zero = np.round(-a / step)
        return float(np.square((np.clip(np.round(x / step) + zero, 0, 255) - zero) * step - x).mean())

    best = min(lost(t) for t in np.linspace(0.5, float(values.abs().max()), 200))
    assert lost(max(-low, high)) <= 1.02 * best
    assert high < float(values.max()), "the tail is cut off"


def test_entropy_cuts_a_far_tail() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=generator)
    values[:3] = 60.0
    low, high = range_of(filled(values), "entropy")
    assert 2.5 < high < 20 and -20 < low < -2.5


def test_a_histogram_counts_everything() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    histogram = filled(values)
    assert float(histogram.counts.sum()) == 1000 and len(histogram.centres) == BINS
    wanted, _ = np.histogram(values.numpy(), BINS, (histogram.low, histogram.high))
    assert float((histogram.counts - torch.from_numpy(wanted)).abs().sum()) <= 4, "values on edges may differ"


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 3.0), (-2.0, 0.0), (-0.17, 6.0)])
def test_zero_has_a_code(low: float, high: float) -> None:
    scale, zero = scale_and_zero(low, high)
    assert scale == np.float32((high - low) / 255) and 0 <= zero <= 255
    assert low - scale <= -zero * scale <= low + scale


def test_inputs_are_rounded_as_the_operator_is_defined() -> None:
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)) * 3
    wide = x.double().numpy()
    low, high = min(wide.min(), 0), max(wide.max(), 0)
    step = (high - low) / 255
    zero = np.clip(np.round(-low / step), 0, 255)
    wanted = (np.clip(np.round(wide / step) + zero, 0, 255) - zero) * step
    np.testing.assert_allclose(round_inputs(x), wanted, atol=1e-6)


def test_rows_have_their_own_steps() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [0.5, 0.25]])
    grid = fit_rows(weight, GridSpec(8, 0, symmetric=True, activations="dynamic"), 127)
    torch.testing.assert_close(grid.scale, torch.tensor([[2 / 127], [1.0], [0.5 / 127]]))


# -- the passes ----------------------------------------------------------------------------------------------------


def logits(model: ModelFolder) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model.load()(**inputs_for(model.task))[0].double().numpy())


@pytest.mark.parametrize("name", ["int8-dynamic", "int8-static"])
@pytest.mark.parametrize("family", ["bert", "vit", "deit", "llama", "opt", "qwen2"])
def test_folding_changes_only_by_rounding(pico: Make, tmp_path: Path, name: str, family: str) -> None:
    """Norms and rows take factors, weights give them back: what is left are weights rounded to 8 bits."""
    source, model, changes = quantize(pico, family, tmp_path, name)
    # BERT's norms feed the residual sum too, so nothing can be folded there.
    assert (sum(change.figures["smoothed_inputs"] for change in changes) > 0) == (family != "bert")
    before, after = logits(source), logits(model)
    assert np.square(after - before).mean() < 1e-3 * np.square(before).mean()


def test_needs_no_data(pico: Make, tmp_path: Path) -> None:
    cls = methods()["int8-dynamic"]
    assert cls(cls.Options()).needs.calibration == "takes"
    for options in ({"sensitive": 0.1}, {"smooth": 0.5}):
        assert cls(cls.Options(**options)).needs.calibration == "must"
    _, model, changes = quantize(pico, "llama", tmp_path, data=False)
    assert sum(change.figures["smoothed_inputs"] for change in changes) > 0, "norms say something about their outputs"
    assert {spec.activations for spec in model.grids.values()} == {"dynamic"}


def test_a_given_alpha_is_smoothquants(pico: Make, tmp_path: Path) -> None:
    source, model, _ = quantize(pico, "vit", tmp_path, smooth=0.5)
    norm = "vit.layers.0.layernorm_before.weight"
    ratio = model.weights.tensor(norm) / source.weights.tensor(norm)
    assert torch.equal(ratio.log2(), ratio.log2().round()) and len(ratio.unique()) > 1


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_excluded_and_embedding(pico: Make, tmp_path: Path, family: str) -> None:
    source, model, _ = quantize(pico, family, tmp_path, exclude=("*.1.*",), embedding="none")
    assert model.grids and not any(".1." in name or "embed" in name for name in model.grids)
    for name in source.weights.names():
        if ".1." in name and "norm" not in name.lower():
            assert torch.equal(source.weights.tensor(name), model.weights.tensor(name)) or family == "llama"


def test_sensitive_spares_what_loses_most(pico: Make, tmp_path: Path) -> None:
    _, model, changes = quantize(pico, "bert", tmp_path, sensitive=0.35)
    kept = [name for name, spec in model.grids.items() if spec.activations == "float"]
    skeleton = model.skeleton()
    whole = sum(skeleton.get_parameter(f"{n}.weight").numel() for n in model.grids if ".layer." in n)
    share = sum(skeleton.get_parameter(f"{n}.weight").numel() for n in kept) / whole
    assert 0 < share <= 0.35
    assert sum(change.figures["spared_modules"] for change in changes) == len(kept)
    for name in kept:
        inputs, group = skeleton.get_parameter(f"{name}.weight").shape[1], model.grids[name].group_size
        assert group == 16 or group < 2 * inputs, "no more padding than a power of two asks for"


def test_input_factors_stay_out_of_safetensors(pico: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.passes.quantize._int8.smooth.WORTHWHILE", 1.0)
    source = open_model(pico("bert"))
    cls = methods()["int8-dynamic"]
    for target, groups in (("onnx", {0, 1}), ("safetensors", {0})):
        method: Any = cls(cls.Options())
        setting = Setting(work=tmp_path / target, fingerprint="f", cache_bytes=1 << 30, target=Target(target))
        model, _ = apply_pass(method, source, toy_batches(source.task), setting)
        assert {spec.group_size for spec in model.grids.values()} == groups
        assert any("embeddings" in name for name in model.grids) == (target == "onnx"), "vLLM looks rows up in floats"


def test_static_ranges_cover_the_inputs(pico: Make, tmp_path: Path) -> None:
    _, model, _ = quantize(pico, "llama", tmp_path, "int8-static", method="minmax", smooth="none")
    module = "model.layers.0.self_attn.q_proj"
    spec = model.grids[module]
    loaded = model.load()
    seen: list[torch.Tensor] = []
    loaded.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in toy_batches(model.task):
            loaded(**{key: torch.as_tensor(value) for key, value in batch.items()})
    low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    step, zero = spec.input_scale, spec.input_zero_point
    assert (high - low) / 255 <= step * (1 + 1e-6) < (high - low) / 255 * (1 + 1 / 64)
    assert -zero * step <= low + step / 2 and (255 - zero) * step >= high - step / 2
    assert model.grids["model.embed_tokens"].input_scale > 0, "the tied head's input is calibrated too"
