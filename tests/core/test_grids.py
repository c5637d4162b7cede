"""Grids: codes and values are one another's inverse, ranges are covered, bytes are what packing stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import ModelError
from compressor.storage.grids import Grid, GridSpec, fit_grid, precision_of, read_section, section


def matrix(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([0, 16, 32, 64]),
    symmetric=st.booleans(),
    inputs=st.integers(1, 130),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_values_have_their_codes_back(bits: int, group: int, symmetric: bool, inputs: int, scale: float, seed: int):
    weight = matrix(3, inputs, seed) * scale
    grid = fit_grid(weight, GridSpec(bits, group, symmetric))
    codes = grid.codes(weight)
    assert codes.dtype == torch.uint8 and int(codes.max()) < 1 << bits
    values = grid.values(codes)
    assert torch.equal(grid.exact_codes(values, "w"), codes)
    assert torch.equal(grid.rounded(values), values)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_nearest_value_in_float64(bits: int, symmetric: bool):
    weight = matrix(5, 70)
    grid = fit_grid(weight, GridSpec(bits, 32, symmetric))
    rounded = grid.rounded(weight)
    scale = grid.scale.double().repeat_interleave(32, 1)[:, :70].numpy()
    zero = 1 << (bits - 1) if grid.zero_point is None else grid.zero_point.numpy().repeat(32, 1)[:, :70].astype(float)
    levels = np.arange(1 << bits)[:, None, None]
    allowed = (levels - zero) * scale
    nearest = np.abs(allowed - weight.double().numpy()).min(0)
    np.testing.assert_allclose(np.abs(rounded.double().numpy() - weight.double().numpy()), nearest, atol=1e-6)
    # Half a step at most inside of the range; symmetric ranges lack one code on one side.
    assert (nearest <= np.abs(scale) * (1.001 if symmetric else 0.5001)).all()


def test_asymmetric_grids_hold_zero():
    weight = matrix(4, 64).abs() + 3.0
    grid = fit_grid(weight, GridSpec(4, 32, symmetric=False))
    assert torch.equal(grid.rounded(torch.zeros(4, 64)), torch.zeros(4, 64))


def test_groups_of_zeros_stay_zeros():
    for symmetric in (True, False):
        grid = fit_grid(torch.zeros(2, 40), GridSpec(4, 32, symmetric))
        assert torch.equal(grid.rounded(torch.zeros(2, 40)), torch.zeros(2, 40))


def test_symmetric_bytes_leave_the_least_code_out():
    weight = matrix(6, 48)
    codes = fit_grid(weight, GridSpec(8, 0, symmetric=True)).codes(weight)
    assert int(codes.min()) >= 1, "signed, -127 is the least"


def test_a_weight_off_its_grid_is_refused():
    weight = matrix(2, 32)
    grid = fit_grid(weight, GridSpec(4, 32, symmetric=True))
    with pytest.raises(ModelError, match="block.q: the weight does not lie on its grid"):
        grid.exact_codes(weight, "block.q")


def test_section_is_read_back():
    specs = {"a.b": GridSpec(4, 32, False), "a.c": GridSpec(8, 0, True, "static", 0.25, 7)}
    config = type("Config", (), {"compression_grids": section(specs, "rtn")})
    assert read_section(config) == specs
    assert read_section(object()) == {}
    config.compression_grids = {"version": 2}  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="version 2"):
        read_section(config)


def test_precision_is_that_of_the_coarsest_part():
    four, eight = GridSpec(4, 32, True), GridSpec(8, 32, True)
    assert precision_of({}, "float16") == "float16"
    assert precision_of({"a": eight}, "float32") == "int8-weights"
    assert precision_of({"a": eight, "b": four}, "float32") == "int4"
    assert precision_of({"a": GridSpec(8, 0, True, "dynamic")}, "float32") == "int8-dynamic"


def test_bytes_by_hand():
    # 3 rows of 100 inputs: 4 groups of 32 (the last padded), half a byte a code, 4 scales, 2 bytes of zero points
    assert GridSpec(4, 32, symmetric=False).bytes(3, 100) == 3 * (4 * 16 + 4 * 4 + 2)
    assert GridSpec(8, 0, True, "dynamic").bytes(3, 100) == 3 * 104


def test_zero_points_follow_their_group():
    spec = GridSpec(4, 16, symmetric=False)
    grid = Grid(spec, torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 15]], dtype=torch.uint8))
    codes = torch.tensor([[3] * 16 + [3] * 4], dtype=torch.uint8)
    assert grid.values(codes).tolist() == [[3.0] * 16 + [-24.0] * 4]
