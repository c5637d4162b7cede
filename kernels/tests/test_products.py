"""The C functions against float64, on every code path that this processor has."""

import platform

import numpy as np
import pytest

import compressor_kernels as ck

LAYOUTS = {
    "f32": lambda w: ck.pack_floats(w),
    "f16": lambda w: ck.pack_floats(w, "f16"),
    "bf16": lambda w: ck.pack_floats(w, "bf16"),
    "int8": lambda w: ck.quantize(w, bits=8),
    "int8 rows": lambda w: ck.quantize(w, bits=8, group_size=0),
    "int8 zeros": lambda w: ck.quantize(w, bits=8, symmetric=False),
    "int8 rows zeros": lambda w: ck.quantize(w, bits=8, group_size=0, symmetric=False),
    "int4": lambda w: ck.quantize(w, bits=4),
    "int4 groups of 64": lambda w: ck.quantize(w, bits=4, group_size=64),
    "int4 zeros": lambda w: ck.quantize(w, bits=4, symmetric=False),
}
# inputs, outputs, tokens: smaller than a vector, one beside the borders of vectors, blocks, groups and tiles, and more
SHAPES = [
    (1, 1, 1), (3, 31, 2), (5, 33, 1), (64, 128, 4), (127, 129, 1), (130, 65, 3), (257, 300, 1), (140, 263, 7),
    (97, 530, 130),
]  # fmt: skip
LOOP, DENSE = 10**6, 1
TOLERANCE = 3e-6


X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(params=["avx512", "avx2", "portable"] if X86 else ["neon", "portable"])
def path(request):
    if not ck.paths().get(request.param):
        pytest.skip(f"this processor has no {request.param}")
    ck.select_path(request.param)
    assert ck.path() == request.param


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def loud(values, thresholds):
    return ~(np.abs(values) <= thresholds)


def skipped(x, weight, thresholds):
    return np.where(loud(x, thresholds), x, 0).astype(np.float64) @ weight.values()


def gated(x, g, up, down, thresholds):
    product = g.astype(np.float64) * (x.astype(np.float64) @ up.values().T)
    return np.where(loud(g, thresholds), product, 0) @ down.values()


def close(result, wanted):
    scale = np.abs(wanted).max(initial=0)
    assert np.abs(result - wanted).max(initial=0) <= TOLERANCE * scale


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dense_from", [LOOP, DENSE], ids=["loop", "dense"])
def test_against_float64(path, layout, dense_from):
    rng, pack = np.random.default_rng(7), LAYOUTS[layout]
    for inputs, outputs, tokens in SHAPES:
        x, each = normal(rng, tokens, inputs), np.abs(normal(rng, inputs))
        weight = pack(normal(rng, inputs, outputs))
        for thresholds in (each, each[:1]):
            close(ck.row_skip_matmul(x, weight, thresholds, dense_from=dense_from), skipped(x, weight, thresholds))
        up, down = pack(normal(rng, outputs, inputs)), pack(normal(rng, outputs, inputs + 2))
        g, each = normal(rng, tokens, outputs), np.abs(normal(rng, outputs))
        for thresholds in (each, each[:1]):
            result = ck.sparse_gated_mlp(x, g, up, down, thresholds, dense_from=dense_from)
            close(result, gated(x, g, up, down, thresholds))


@pytest.mark.parametrize("layout", ["f32", "int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_silent_rows_are_not_read(path, layout, tokens):
    """Rows of silent neurons hold what would spoil every sum: NaN, or an infinite scale."""
    rng = np.random.default_rng(1)
    silent = np.arange(70) % 3 == 0
    x = normal(rng, tokens, 70)
    x[:, silent] = 0
    x[:, ~silent] += np.sign(x[:, ~silent])
    values = normal(rng, 70, 90)
    clean, spoiled = (LAYOUTS[layout](values) for _ in range(2))
    (spoiled.data if spoiled.scale is None else spoiled.scale)[silent] = np.nan
    thresholds = np.full(1, 0.5, np.float32)
    for dense_from in (LOOP, DENSE):
        for product in (ck.row_skip_matmul, _mlp):
            result = product(x, spoiled, thresholds, dense_from=dense_from)
            assert np.array_equal(result, product(x, clean, thresholds, dense_from=dense_from))
            assert np.isfinite(result).all()


def _mlp(g, weight, thresholds, dense_from):
    x = np.ones((len(g), weight.shape[1]), np.float32)
    return ck.sparse_gated_mlp(x, g, weight, weight, thresholds, dense_from=dense_from)


@pytest.mark.parametrize("dense_from", [LOOP, DENSE], ids=["loop", "dense"])
@pytest.mark.parametrize("layout", ["f32", "bf16", "int8", "int4"])
def test_all_silent_gives_zero_and_all_loud_gives_the_product(path, layout, dense_from):
    rng = np.random.default_rng(2)
    for tokens in (1, 3):
        x, weight = normal(rng, tokens, 75), LAYOUTS[layout](normal(rng, 75, 140))
        g, top = normal(rng, tokens, 75), np.full(1, 100, np.float32)
        up = LAYOUTS[layout](normal(rng, 75, 75))
        assert not ck.row_skip_matmul(x, weight, top, dense_from=dense_from).any()
        assert not ck.sparse_gated_mlp(x, g, up, weight, top, dense_from=dense_from).any()
        below = np.full(1, -1, np.float32)
        close(ck.row_skip_matmul(x, weight, below, dense_from=dense_from), x.astype(np.float64) @ weight.values())
        result = ck.sparse_gated_mlp(x, g, up, weight, below, dense_from=dense_from)
        close(result, gated(x, g, up, weight, below))


@pytest.mark.parametrize("dense_from", [LOOP, DENSE], ids=["loop", "dense"])
@pytest.mark.parametrize("layout", ["f32", "f16", "int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_silent(path, layout, dense_from, value):
    rng = np.random.default_rng(3)
    x, weight = normal(rng, 3, 40), LAYOUTS[layout](normal(rng, 40, 70))
    up, thresholds = LAYOUTS[layout](normal(rng, 40, 40)), np.full(40, 1, np.float32)
    spoiled = x.copy()
    spoiled[1, 17] = value
    result = ck.row_skip_matmul(spoiled, weight, thresholds, dense_from=dense_from)
    assert not np.isfinite(result[1]).any()
    close(result[::2], skipped(x, weight, thresholds)[::2])
    result = ck.sparse_gated_mlp(x, spoiled, up, weight, thresholds, dense_from=dense_from)
    assert not np.isfinite(result[1]).any()
    close(result[::2], gated(x, x, up, weight, thresholds)[::2])
    # A threshold that is NaN silences nothing.
    every = np.full(1, np.nan, np.float32)
    close(ck.row_skip_matmul(x, weight, every, dense_from=dense_from), x.astype(np.float64) @ weight.values())


def test_every_float16_and_bfloat16_is_read_exactly(path):
    halves = np.arange(2**16, dtype=np.uint16)
    ones = np.ones((1, 1), np.float32)
    for format, wanted in (
        ("f16", halves.view(np.float16).astype(np.float32)),
        ("bf16", (halves.astype(np.uint32) << 16).view(np.float32)),
    ):
        data = halves.view(np.float16) if format == "f16" else halves
        result = ck.row_skip_matmul(ones, ck.Weight(format, (1, 2**16), data.reshape(1, -1)), ones[0] / 2)[0]
        usual = (wanted == 0) | (np.abs(wanted) >= np.finfo(np.float32).tiny) | np.isnan(wanted)
        assert np.array_equal(result[usual], wanted[usual], equal_nan=True)


def test_leading_dimensions_and_no_tokens():
    rng = np.random.default_rng(4)
    x, weight, thresholds = normal(rng, 2, 3, 20), ck.pack_floats(normal(rng, 20, 9)), np.full(1, 0.5, np.float32)
    result = ck.row_skip_matmul(x, weight, thresholds)
    assert result.shape == (2, 3, 9)
    close(result, skipped(x, weight, thresholds))
    assert ck.row_skip_matmul(x[:0], weight, thresholds).shape == (0, 3, 9)


def test_the_dense_path_is_taken_where_it_was_measured_to_pay():
    """Many loud tokens cost less on the dense path, and their result is the same up to rounding."""
    rng = np.random.default_rng(5)
    x, weight = normal(rng, 64, 256), ck.pack_floats(normal(rng, 256, 384))
    thresholds = np.zeros(1, np.float32)
    close(ck.row_skip_matmul(x, weight, thresholds), skipped(x, weight, thresholds))
    for kind in ck.costs("f32").values():
        assert 64 * kind["loop"] > kind["read"] + 64 * kind["token"] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w, t: ck.row_skip_matmul(x[:, :-1], w, t),
        lambda x, w, t: ck.row_skip_matmul(x.astype(np.float64), w, t),
        lambda x, w, t: ck.row_skip_matmul(x, w, t[:3]),
        lambda x, w, t: ck.row_skip_matmul(x, w, t.astype(np.float64)),
        lambda x, w, t: ck.sparse_gated_mlp(x, x, w, w, t),
        lambda x, w, t: ck.sparse_gated_mlp(x[:, :9], x[:1], w, w, t),
        lambda x, w, t: ck.quantize(x, bits=3),
        lambda x, w, t: ck.quantize(x, bits=4, group_size=16),
        lambda x, w, t: ck.quantize(x, bits=4, group_size=0),
        lambda x, w, t: ck.pack_codes(np.full((2, 8), 16, np.uint8), np.ones((2, 1)), bits=4, group_size=32),
        lambda x, w, t: ck.pack_codes(np.ones((2, 8), np.uint8), np.ones((2, 2)), bits=4, group_size=32),
        lambda x, w, t: ck.pack_codes(np.ones((2, 8), np.uint8), np.ones((2, 1)), np.ones(3), bits=4, group_size=32),
        lambda x, w, t: ck.pack_floats(x[0]),
        lambda x, w, t: ck.pack_floats(x, "f8"),
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    rng = np.random.default_rng(6)
    with pytest.raises(ck.ArgumentError):
        wrong(normal(rng, 2, 20), ck.pack_floats(normal(rng, 20, 9)), np.ones(20, np.float32))


def test_a_path_that_is_not_there_is_refused(monkeypatch):
    with pytest.raises(ck.LibraryError, match="it can run .*portable"):
        ck.select_path("avx1024")
    monkeypatch.setenv("COMPRESSOR_KERNELS_LIBRARY", "/nowhere/lib.so")
    with pytest.raises(ck.LibraryError, match="no such file"):
        ck.library_path()


def test_the_environment_names_the_dense_path(monkeypatch):
    """The two paths add up in another order, which shows in the last bits."""
    rng = np.random.default_rng(8)
    x, g, thresholds = normal(rng, 1, 400), normal(rng, 1, 90), np.zeros(1, np.float32)
    up, down = ck.pack_floats(normal(rng, 90, 400)), ck.pack_floats(normal(rng, 90, 70))
    loop, dense = (ck.sparse_gated_mlp(x, g, up, down, thresholds, dense_from=n) for n in (LOOP, DENSE))
    assert not np.array_equal(loop, dense)
    monkeypatch.setenv("COMPRESSOR_KERNELS_DENSE_FROM", "1")
    assert np.array_equal(ck.sparse_gated_mlp(x, g, up, down, thresholds), dense)
