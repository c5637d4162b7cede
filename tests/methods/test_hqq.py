"""HQQ against a loop over single groups in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.data.kinds import Batches
from compressor.model.folder import open_model
from compressor.passes.quantize.hqq import Hqq, half_quadratic
from compressor.storage.grids import GridSpec, fit_grid
from tests.methods.quantized import check_on_grids, run

Make = Callable[..., Path]
TOP = 15


def heavy(outputs: int, inputs: int) -> torch.Tensor:
    """Return a weight with a few large entries, float32."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight + 4 * weight * (torch.rand(outputs, inputs, generator=generator) > 0.97)


def one_group(part: np.ndarray, scale: float, zero: int, symmetric: bool, p: float, beta: float, turns: int) -> tuple:
    """Return (error, scale, zero point) of one group after the turns, in float64."""

    def codes(scale: float, zero: int) -> np.ndarray:
        return np.clip(np.round(part / scale) + zero, 0, TOP)

    def error(scale: float, zero: int) -> float:
        return float((np.abs(part - (codes(scale, zero) - zero) * scale) ** p).sum())

    best = (error(scale, zero), scale, zero)
    for _ in range(turns):
        q = codes(scale, zero)
        left = part / scale - (q - zero)
        with np.errstate(divide="ignore"):
            shrunk = np.sign(left) * np.maximum(np.abs(left) - np.abs(left) ** (p - 1) / beta, 0)
        aimed = part / scale - shrunk
        if not symmetric:
            zero = int(np.clip(np.round(np.mean(q - aimed)), 0, TOP))
        scale = scale * float(((q - zero) @ aimed) / ((q - zero) @ (q - zero)))
        beta *= 1.01
        best = min(best, (error(scale, zero), scale, zero), key=lambda found: found[0])
    return best


@pytest.mark.parametrize("symmetric", [True, False])
def test_grids_are_those_of_a_loop_over_single_groups(symmetric: bool) -> None:
    weight, spec = heavy(12, 80), GridSpec(4, 32, symmetric)
    start = fit_grid(weight, spec)
    found = half_quadratic(weight, spec, Hqq.Options(symmetric=symmetric, iterations=5))
    improved = 0
    for row in range(12):
        for group, columns in enumerate((slice(0, 32), slice(32, 64), slice(64, 80))):
            part = weight[row, columns].double().numpy()
            zero = 8 if start.zero_point is None else int(start.zero_point[row, group])
            first = float(start.scale[row, group])
            _, scale, zero = one_group(part, first, zero, symmetric, 0.7, 10.0, 5)
            assert float(found.scale[row, group]) == pytest.approx(scale, rel=1e-4)
            assert found.zero_point is None or int(found.zero_point[row, group]) == zero
            improved += scale != first
    assert improved > 9


def test_no_group_gets_worse_and_outliers_count_less() -> None:
    weight, spec = heavy(64, 256), GridSpec(4, 32, False)

    def error(p: float, norm: float | None) -> np.ndarray:
        grid = fit_grid(weight, spec) if norm is None else half_quadratic(weight, spec, Hqq.Options(norm=norm))
        return (np.abs((weight - grid.rounded(weight)).double().numpy()) ** p).reshape(64, 8, 32).sum(2)

    assert (error(0.7, 0.7) <= error(0.7, None) * (1 + 1e-5)).all()
    assert error(0.7, 0.7).sum() < 0.97 * error(0.7, None).sum()
    assert error(0.7, 0.7).sum() < error(0.7, 2.0).sum()


def test_it_needs_no_data_and_puts_weights_on_grids(pico: Make, tmp_path: Path) -> None:
    model = open_model(pico("llama"))
    found, _ = run(Hqq, model, tmp_path, Batches(lambda: iter(()), 0))
    assert len(check_on_grids(found)) == 3 * 7


def test_groups_of_zeros_stay_zero() -> None:
    weight = torch.zeros(2, 64)
    weight[0, 40] = 1.0
    grid = half_quadratic(weight, GridSpec(4, 32, False), Hqq.Options())
    assert torch.equal(grid.rounded(weight), weight) and bool(torch.isfinite(grid.scale).all())
