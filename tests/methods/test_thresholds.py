"""Activation sparsity: thresholds are the papers', the repair is the least-squares solution, and silence is 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.model.blueprint import GateSpec
from compressor.model.folder import ModelFolder, open_model
from compressor.model.gated import GatedActivation, GatedLinear, loud
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.passes.numerics.moments import Moments
from compressor.passes.numerics.quantiles import Magnitudes
from tests.core.toy import batches_of

Pico = Callable[..., Path]


def compressed(source: ModelFolder, work: Path, name: str, **options: object) -> ModelFolder:
    method = methods()[name]
    setting = Setting(work=work, fingerprint="t", cache_bytes=1 << 28)
    return apply_pass(method(method.Options(**options)), source, batches_of(source), setting)[0]


def seen(model: ModelFolder, path: str, *, outputs: bool = False) -> np.ndarray:
    """Return what the module at a path is given, or gives, on the calibration data, [tokens, width] in float64."""
    found, module = [], model.load()
    part = module.get_submodule(path)
    if outputs:
        part.register_forward_hook(lambda _, args, out: found.append(out))
    else:
        part.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        for batch in batches_of(model):
            module(**{key: torch.as_tensor(value) for key, value in batch.items()})
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in found]).double().numpy()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_quantiles_of_what_streams_past(share: float) -> None:
    torch.manual_seed(0)
    values, found = torch.randn(4000) ** 3, Magnitudes()
    for part in values.split(700):
        found.add(part)
    t = found.quantile(share)
    assert abs(float((values.abs() <= t).double().mean()) - share) < 0.004
    wanted = float(np.quantile(values.abs().double().numpy(), share, method="inverted_cdf"))
    assert share == 0 or wanted <= t <= wanted * 1.0028


def test_nan_and_infinity_are_never_silent() -> None:
    values = torch.tensor([[0.1, -0.1, float("nan"), float("inf"), 2.0]])
    for gate, threshold in ((GateSpec(0.5), 0.5), (GateSpec(per_channel=True), torch.full((5,), 0.5))):
        assert loud(values, gate, threshold).nan_to_num(7.0, 8.0).tolist() == [[0, 0, 7, 8, 2]]
    linear = GatedLinear(torch.nn.Linear(5, 1), GateSpec(0.5))
    assert linear(values).isnan().all()


def test_only_the_largest_go_on() -> None:
    values = torch.tensor([[3.0, -1.0, 2.0, -4.0], [1.0, 1.0, 0.0, 5.0]])
    assert loud(values, GateSpec(count=2), 0.0).tolist() == [[3, 0, 0, -4], [0, 0, 0, 5]]
    assert torch.equal(loud(values, GateSpec(count=4), 0.0), values)


def test_cats_and_chess_find_the_papers_thresholds(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("llama"))
    gate = seen(source, "model.layers.0.mlp.act_fn", outputs=True)
    up = seen(source, "model.layers.0.mlp.up_proj", outputs=True)
    model = compressed(source, tmp_path / "cats", "cats", sparsity=0.5, repair=False)
    found = model.blueprint.gates["model.layers.0.mlp.act_fn"].threshold
    assert found == pytest.approx(np.quantile(np.abs(gate), 0.5), rel=0.01)
    model = compressed(source, tmp_path / "chess", "thresholds", sparsity=0.3, by="contribution", repair=False)
    mean = np.abs(up).mean(0)
    wanted = np.quantile(np.abs(gate) * mean, 0.3) / mean
    each = model.load().get_submodule("model.layers.0.mlp.act_fn")
    assert isinstance(each, GatedActivation)
    np.testing.assert_allclose(each.threshold.double().numpy(), wanted, rtol=0.01)


def test_teal_silences_the_wanted_share_of_every_input(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("llama"))
    model = compressed(source, tmp_path, "teal", sparsity=0.4, repair=False)
    assert len(model.blueprint.gates) == 7 * len(source.shapes.layers)
    for name, gate in model.blueprint.gates.items():
        silent = np.abs(seen(model, name)) <= gate.threshold
        assert abs(silent.mean() - 0.4) < 0.02, name


def test_the_repair_is_the_least_squares_solution(pico: Pico, tmp_path: Path) -> None:
    """In the first block nothing before the FFN is gated, so the target is what the dense writer adds."""
    source = open_model(pico("llama"))
    model = compressed(source, tmp_path, "topk", sparsity=0.5)
    name = "model.layers.0.mlp.down_proj"
    count = model.blueprint.gates[name].count
    inputs, stream = seen(source, name), seen(source, "model.layers.0.post_attention_layernorm")
    smallest = np.sort(np.abs(inputs), axis=1)[:, -count - 1][:, None]
    kept = np.where(np.abs(inputs) <= smallest, 0, inputs)
    dense = source.load().get_submodule(name).weight.double().numpy()
    energy = (stream**2).mean(1)
    weights = 1 / (energy + 1e-3 * energy.mean())
    gram = (kept * weights[:, None]).T @ kept / weights.sum()
    cross = (inputs @ dense.T * weights[:, None]).T @ kept / weights.sum()
    ridges = np.array([0.01, 0.1, 1.0]) * gram.diagonal().mean()
    fits = [np.linalg.solve(gram + ridge * np.eye(len(gram)), (cross + ridge * dense).T).T for ridge in ridges]
    found = model.load().get_submodule(name).weight.double().numpy()
    moved = np.abs(found - dense).max()
    assert moved > 0 and min(np.abs(found - wanted).max() for wanted in fits) < 0.05 * moved


def test_errors_of_maps_and_joined_moments_are_those_of_the_tokens() -> None:
    torch.manual_seed(0)
    h, y, w = torch.randn(50, 4), torch.randn(50, 3), torch.rand(50)
    whole, part = Moments(4, 3), Moments(4, 3)
    whole.add(h[:20], y[:20], w[:20])
    part.add(h[20:], y[20:], w[20:])
    whole.join(part)
    weight, bias = torch.randn(3, 4), torch.randn(3)
    for shift in (None, bias):
        missed = y - h @ weight.T - (0 if shift is None else shift)
        wanted = float((missed.square().sum(1) * w).sum() / (y.square().sum(1) * w).sum())
        assert whole.error_of(weight, shift) == pytest.approx(wanted, rel=1e-4)


def test_what_is_not_covered_is_refused(pico: Pico, tmp_path: Path) -> None:
    method = methods()["cats"]
    with pytest.raises(ModelError, match="family bert is not covered"):
        method(method.Options(sparsity=0.5)).plan(open_model(pico("bert")), Target())
    gated = compressed(open_model(pico("llama")), tmp_path, "cats", sparsity=0.5, repair=False)
    with pytest.raises(ModelError, match="has gates already"):
        method(method.Options(sparsity=0.5)).plan(gated, Target())
