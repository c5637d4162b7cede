"""Layouts of weights."""

import numpy as np
import pytest

import compressor_kernels as ck


def test_float_formats_round_to_the_nearest():
    values = np.array([[1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.1415927, 2**-140, np.inf, np.nan]], np.float32)
    assert np.array_equal(ck.pack_floats(values).values(), values, equal_nan=True)
    assert np.array_equal(ck.pack_floats(values, "f16").values(), values.astype(np.float16), equal_nan=True)
    # Ties go to the even one of two neighbours, which are 2^-7 apart.
    wanted = [1.0, 1.0, 1 + 2**-6, -3.140625, 2**-133 * round(2**-7), np.inf, np.nan]
    assert np.array_equal(ck.pack_floats(values, "bf16").values()[0], wanted, equal_nan=True)


def test_codes_lie_in_blocks_along_a_row():
    codes = np.arange(2 * 70, dtype=np.uint8).reshape(2, 70) % 16
    scale = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    weight = ck.pack_codes(codes, scale, bits=4, group_size=32)
    assert weight.data.shape == (2, 3, 16)
    assert weight.data[1, 1, 5] == codes[1, 32 + 10] | codes[1, 32 + 11] << 4
    assert weight.data[0, 2, 3] == 0  # padding
    wanted = (codes.astype(float) - 8) * np.repeat(scale, 32, axis=1)[:, :70]
    assert np.array_equal(weight.values(), wanted)
    whole = ck.pack_codes(codes, scale[:, :1], np.full((2, 1), 3), bits=8, group_size=0)
    assert whole.data.shape == (2, 1, 70)
    assert np.array_equal(whole.values(), (codes.astype(float) - 3) * scale[:, :1])


def test_larger_groups_repeat_their_numbers():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (3, 150), np.uint8)
    scale, zero = rng.random((3, 2)).astype(np.float32), rng.integers(0, 16, (3, 2))
    weight = ck.pack_codes(codes, scale, zero, bits=4, group_size=96)
    assert weight.scale.shape == weight.zero.shape == (3, 5)
    each = [np.repeat(n, 96, axis=1)[:, :150] for n in (zero, scale)]
    assert np.array_equal(weight.values(), (codes.astype(float) - each[0]) * each[1])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantized_values_are_near(bits, symmetric):
    values = np.random.default_rng(1).standard_normal((5, 77)).astype(np.float32) + (0 if symmetric else 1)
    values[2] = 0
    weight = ck.quantize(values, bits=bits, symmetric=symmetric)
    step = np.repeat(weight.scale, 32, axis=1)[:, :77]
    assert (np.abs(weight.values() - values) <= 0.51 * step).all()
