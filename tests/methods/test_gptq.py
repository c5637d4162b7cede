"""GPTQ against float64 formulas, and on pico-models of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.data.reading import DataRequest, load_data, model_batches
from compressor.errors import ModelError
from compressor.model.folder import open_model
from compressor.passes.numerics import rounding as solver
from compressor.passes.numerics.elimination import damped
from compressor.passes.quantize.gptq import Gptq
from compressor.passes.quantize.rtn import Rtn
from compressor.passes.surgery.linears import block_names
from compressor.storage.grids import Grid, GridSpec, fit_grid
from tests.methods.quantized import check_on_grids, correlated, outputs, padded, run

Make = Callable[..., Path]


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight [outputs, inputs] and the second moments of its inputs, float64."""
    generator = torch.Generator().manual_seed(seed + 1)
    rows = correlated(4 * inputs, inputs, seed)
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), rows.T @ rows / len(rows)


def loss(weight: torch.Tensor, values: torch.Tensor, gram: torch.Tensor) -> float:
    error = weight.double() - values.double()
    return float(((error @ gram) * error).sum())


def one_by_one(weight: torch.Tensor, grid: Grid, gram: torch.Tensor, order: list[int]) -> np.ndarray[Any, Any]:
    """Optimal Brain Quantization in a fixed order: the inverse is explicit, and loses a row and a column at a time."""
    left, inverse = weight.numpy().copy(), np.linalg.inv(gram.numpy())
    top, size = (1 << grid.spec.bits) - 1, grid.spec.group_size
    scales = grid.scale.double().numpy()
    codes = np.zeros(left.shape, np.uint8)
    for j in order:
        scale = scales[:, j // size]
        zero = (
            1 << (grid.spec.bits - 1) if grid.zero_point is None else grid.zero_point.numpy()[:, j // size].astype(int)
        )
        code = np.clip(np.round(left[:, j] / scale) + zero, 0, top)
        codes[:, j] = code
        error = left[:, j] - (code - zero) * scale
        left = left - np.outer(error / inverse[j, j], inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("inputs", "group"), [(64, 16), (100, 32), (300, 128)])
def test_feedback_is_optimal_brain_quantization(inputs: int, group: int, symmetric: bool, act_order: bool) -> None:
    """Blocks of columns, lazy updates and the Cholesky factor change nothing; groups may be ragged."""
    weight, gram = problem(6, inputs)
    gram = damped(gram, 0.01)
    grid = fit_grid(weight, GridSpec(4, group, symmetric))
    order = torch.argsort(gram.diagonal(), descending=True).tolist() if act_order else list(range(inputs))
    codes = solver.feed_back(weight, grid, gram, act_order=act_order)
    np.testing.assert_array_equal(codes.numpy(), one_by_one(weight, grid, gram, order))
    assert loss(weight, grid.values(codes), gram) < 0.7 * loss(weight, grid.rounded(weight), gram)


def test_float32_loses_as_little_as_float64() -> None:
    weight, gram = problem(64, 200)
    gram, grid = damped(gram, 0.01), fit_grid(weight, GridSpec(4, 32, False))
    found = [
        loss(weight, grid.values(solver.feed_back(w, grid, gram, act_order=True)), gram)
        for w in (weight, weight.float())
    ]
    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_descent_ends_where_no_single_code_can_improve() -> None:
    weight, gram = problem(4, 40)
    gram, grid = damped(gram, 0.01), fit_grid(weight, GridSpec(2, 16, False))
    codes, before = grid.codes(weight), np.inf
    for _ in range(50):
        codes = solver.descend(weight, grid, codes, gram)
        now = loss(weight, grid.values(codes), gram)
        assert now <= before * (1 + 1e-6)
        before = now
    for row in range(4):
        for column in range(40):
            for code in range(4):
                other = codes.clone()
                other[row, column] = code
                assert loss(weight, grid.values(other), gram) >= before * (1 - 1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_refitted_scales_are_the_least_squares_solution(symmetric: bool) -> None:
    weight, gram = problem(5, 100)
    gram, spec = damped(gram, 0.01), GridSpec(3, 32, symmetric)
    grid = fit_grid(weight, spec)
    codes = solver.feed_back(weight, grid, gram, act_order=True)
    found = solver.refit_scales(weight, grid, codes, gram)
    half = np.linalg.cholesky(gram.numpy()).T
    steps = grid.values(codes).double().numpy() / np.repeat(grid.scale.double().numpy(), 32, axis=1)[:, :100]
    least = 0.0
    for row in range(5):
        columns = np.stack([np.where(np.arange(100) // 32 == g, steps[row], 0.0) for g in range(4)], axis=1)
        best = np.linalg.lstsq(half @ columns, half @ weight[row].numpy(), rcond=None)[0]
        least += float(np.square(half @ (weight[row].numpy() - columns @ best)).sum())
    now = loss(weight, found.values(codes), gram)
    assert least <= now < 1.001 * least and now < loss(weight, grid.values(codes), gram)


def test_correction_is_a_ridge_regression_towards_the_weight() -> None:
    rows, other = correlated(500, 30, 1), correlated(500, 30, 2)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(7, 30, generator=generator, dtype=torch.float64)
    wanted = (rows + 0.1 * other) @ weight.T
    gram, cross = rows.T @ rows / 500, wanted.T @ rows / 500
    found = solver.corrected(weight, gram, cross, 0.05)
    ridge = float(0.05 * gram.diagonal().mean()) ** 0.5
    given = np.concatenate([rows.numpy() / 500**0.5, ridge * np.eye(30)])
    aimed = np.concatenate([wanted.numpy() / 500**0.5, ridge * weight.numpy().T])
    np.testing.assert_allclose(found.numpy(), np.linalg.lstsq(given, aimed, rcond=None)[0].T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(solver.corrected(weight, gram, weight @ gram, 0.05), weight)


def test_clipping_never_raises_the_weighted_error_of_a_group() -> None:
    weight, gram = problem(32, 100)
    for symmetric in (True, False):
        spec = GridSpec(4, 32, symmetric)
        full, clipped = fit_grid(weight, spec), solver.clipped_grid(weight, spec, gram.diagonal())
        errors = [
            np.add.reduceat((gram.diagonal() * (weight - g.rounded(weight)) ** 2).numpy(), [0, 32, 64, 96], axis=1)
            for g in (full, clipped)
        ]
        assert (errors[1] <= errors[0]).all() and errors[1].sum() < 0.95 * errors[0].sum()


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    weight, gram = problem(8, 48)
    dead = [3, 17, 40]
    gram[dead] = 0
    gram[:, dead] = 0
    grid = fit_grid(weight, GridSpec(4, 16, False))
    codes = solver.feed_back(weight, grid, damped(gram, 0.01), act_order=True)
    assert torch.equal(codes[:, dead], grid.codes(weight)[:, dead])
    nothing = solver.feed_back(weight, grid, damped(torch.zeros_like(gram), 0.01), act_order=True)
    assert torch.equal(nothing, grid.codes(weight))


def test_moments_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(ModelError, match="not finite"):
        damped(torch.full((4, 4), torch.inf), 0.01)
    with pytest.raises(ModelError, match="cannot be inverted"):
        solver.inverse_factor(-torch.eye(4, dtype=torch.float64))


GRIDS: list[dict[str, Any]] = [
    {},
    {"symmetric": True},
    {"bits": 2, "group_size": 16, "clip": "mse"},
    {"correct": False, "refine": 0},
]


# Options are alike to all families: a decoder and an encoder go through all of them.
@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param(
            family,
            options,
            marks=pytest.mark.exhaustive if options and family in ("opt", "vit") else (),
            id=f"{family}-{i}",
        )
        for family in ("llama", "opt", "bert", "vit")
        for i, options in enumerate(GRIDS)
    ],
)
def test_weights_lie_on_their_grids_and_lose_less_than_rtn(
    family: str, options: dict[str, Any], pico: Make, tmp_path: Path
) -> None:
    model = open_model(pico(family))
    grid_options = {key: value for key, value in options.items() if key in ("bits", "group_size", "symmetric")}
    found, changes = run(Gptq, model, tmp_path / "gptq", **options)
    plain, _ = run(Rtn, model, tmp_path / "rtn", **grid_options)
    assert check_on_grids(found).keys() == plain.grids.keys()
    assert all(0 < change.figures["quantization_error"] < 0.5 for change in changes)
    dense = outputs(model)
    errors = [float((outputs(m) - dense).square().mean()) for m in (found, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("family", ["mistral", "bert"])
def test_correction_brings_the_outputs_nearer(family: str, pico: Make, tmp_path: Path) -> None:
    """Three bits' worth of error at two bits: later blocks can make up for a part of it."""
    model = open_model(pico(family))
    dense = outputs(model)
    errors = [
        float(
            (outputs(run(Gptq, model, tmp_path / str(correct), bits=2, group_size=16, correct=correct)[0]) - dense)
            .square()
            .mean()
        )
        for correct in (True, False)
    ]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("family", ["mistral", "bert", "vit"])
def test_what_weights_should_give_is_what_they_give_where_hardly_anything_is_rounded(
    family: str, pico: Make, tmp_path: Path
) -> None:
    """At 8 bits dense and changed inputs nearly agree, so E[y xᵀ] is nearly W·H, whatever biases there are."""
    differences: list[float] = []

    class Probe(Gptq):
        def target(self, weight: torch.Tensor, stats: Any, cross: torch.Tensor | None) -> torch.Tensor:
            assert cross is not None
            expected = weight.double() @ stats.gram
            differences.append(float((cross - expected).norm() / expected.norm()))
            return weight

    model = open_model(pico(family))
    run(Probe, model, tmp_path, bits=8, group_size=16)
    assert len(differences) == len(block_names(model))
    assert max(differences) < 0.05


def test_a_killed_run_resumes_to_the_same_bytes(pico: Make, tmp_path: Path) -> None:
    model = open_model(pico("mistral"))
    run(Gptq, model, tmp_path)
    whole = {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")}
    state = json.loads((tmp_path / "state.json").read_text())
    state["done"] = {key: note for key, note in state["done"].items() if key in ("findings", "block-0000")}
    (tmp_path / "state.json").write_text(json.dumps(state))
    run(Gptq, model, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")} == whole


def test_padding_is_not_calibrated_on(pico: Make, tmp_path: Path) -> None:
    model = open_model(pico("bert"))
    first, second = (
        run(Gptq, model, tmp_path / str(other), padded(other=other))[0].load().state_dict() for other in (None, 5)
    )
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.real
@pytest.mark.exhaustive
@pytest.mark.slow
def test_real_model_diverges_half_as_much_as_rounded(data_root: Path, tmp_path: Path) -> None:
    """KL to dense of a trained Llama on text that was not calibrated on, and what correction takes off it."""
    model = open_model(data_root / "models" / "llama-wt2")

    def windows(file: str, samples: int, purpose: Any) -> Any:
        request = DataRequest(str(data_root / "text" / file), (), samples, 256, 0, purpose)
        return load_data(request, model.task, model.path)

    calibration = model_batches(windows("wikitext2-train.txt", 64, "calibration"))
    ids = torch.as_tensor(windows("wikitext2-valid.txt", 24, "evaluation").windows)

    def predictions(folder: Any) -> torch.Tensor:
        with torch.no_grad():
            return folder.load()(input_ids=ids).logits.log_softmax(-1).double()

    dense = predictions(model)

    def divergence(name: str, method: Any, **options: Any) -> float:
        ours = predictions(run(method, model, tmp_path / name, calibration, **options)[0])
        return float((dense.exp() * (dense - ours)).sum(-1).mean())

    found = divergence("gptq", Gptq)
    assert found < 0.5 * divergence("rtn", Rtn)
    assert found < 0.85 * divergence("plain", Gptq, correct=False)


@pytest.mark.parametrize(("bits", "factor", "level"), [(4, 1, 4), (8, 1, 4), (8, 1000, 0)])
def test_inputs_are_rounded_unless_it_costs_much(
    bits: int, factor: float, level: int, pico: Make, tmp_path: Path
) -> None:
    """8-bit weights lose less than rounded inputs do, which is no reason to be slow; a loud channel is one."""
    module: Any = open_model(pico("llama")).load()
    layer = module.model.layers[0]
    layer.input_layernorm.weight.data[5] *= factor
    for reader in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        reader.weight.data[:, 5] /= factor
    module.save_pretrained(tmp_path / "model")
    model, _ = run(Gptq, open_model(tmp_path / "model"), tmp_path / "work", bits=bits, group_size=16)
    assert model.grids["model.layers.0.self_attn.q_proj"].accuracy_level == level
    assert model.grids["model.layers.1.self_attn.q_proj"].accuracy_level == 4
