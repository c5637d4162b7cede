"""The operators in ONNX Runtime: with the library, without it (the function body), and against float64."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import compressor_kernels as ck

FORMATS = ["f32", "f16", "bf16", "int8", "int8 rows", "int8 zeros", "int4", "int4 zeros"]
OPERATORS = {"RowSkipMatMul", "SparseGatedMLP"}


def packed(values, format):
    if format in ("f32", "f16", "bf16"):
        return ck.pack_floats(values, format)
    group = 0 if "rows" in format else ck.BLOCK
    return ck.quantize(values, bits=int(format[3]), group_size=group, symmetric="zeros" not in format)


def tensors(weight, name):
    """Initializers of a weight, in the order of an operator's inputs."""
    if weight.format == "bf16":
        return [helper.make_tensor(name, TensorProto.BFLOAT16, weight.shape, weight.data.tobytes(), raw=True)]
    ends = ("", "_scale", "_zero")
    return [numpy_helper.from_array(t, name + end) for t, end in zip(weight.tensors, ends, strict=False)]


def model(name, inputs, weights, thresholds, *, opset=21, **attributes):
    """A model of one operator; inputs X (and G) have shapes."""
    stored = [t for w, at in zip(weights, ("W", "V"), strict=False) for t in tensors(w, at)]
    stored.append(numpy_helper.from_array(thresholds, "T"))
    format = weights[-1].format
    if format.startswith("int"):
        attributes["N"] = weights[-1].shape[1]
    names = [*inputs, *(t.name for t in stored)]
    node = helper.make_node(ck.operator(name, format), names, ["Y"], name="op", domain=ck.DOMAIN, **attributes)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    shape = [*next(iter(inputs.values()))[:-1], weights[-1].shape[1]]
    result = helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "one", values, [result], stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(ck.DOMAIN, 1)]
    made = helper.make_model(graph, opset_imports=imports, functions=ck.function_bodies(opset), ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def session(serialized, *, native, threads=1, profile=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if native:
        options.register_custom_ops_library(str(ck.library_path()))
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "ort")
    return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def row_skip(rng, format, inputs, outputs, tokens, each, **more):
    """A model of RowSkipMatMul, its feeds, and what float64 gives."""
    weight = packed(normal(rng, inputs, outputs), format)
    thresholds = np.abs(normal(rng, inputs if each else 1))
    x = normal(rng, *tokens, inputs)
    wanted = np.where(~(np.abs(x) <= thresholds), x, 0).astype(np.float64) @ weight.values()
    shapes = {"X": [None] * len(tokens) + [inputs]}
    return model("RowSkipMatMul", shapes, [weight], thresholds, **more), {"X": x}, wanted


def gated_mlp(rng, format, inputs, outputs, tokens, each, neurons=83, **more):
    up, down = (packed(normal(rng, neurons, n), format) for n in (inputs, outputs))
    thresholds = np.abs(normal(rng, neurons if each else 1))
    x, g = normal(rng, *tokens, inputs), normal(rng, *tokens, neurons)
    product = g.astype(np.float64) * (x.astype(np.float64) @ up.values().T)
    wanted = np.where(~(np.abs(g) <= thresholds), product, 0) @ down.values()
    shapes = {n: [None] * len(tokens) + [width] for n, width in (("X", inputs), ("G", neurons))}
    return model("SparseGatedMLP", shapes, [up, down], thresholds, **more), {"X": x, "G": g}, wanted


def close(result, wanted):
    assert result.shape == wanted.shape
    assert np.linalg.norm(result - wanted) <= 3e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("make", [row_skip, gated_mlp])
def test_operator_and_body_against_float64(make, format):
    rng = np.random.default_rng(11)
    for inputs, outputs, tokens, each in ((70, 131, (1, 1), True), (33, 257, (2, 3), False), (64, 96, (130,), True)):
        serialized, feeds, wanted = make(rng, format, inputs, outputs, tokens, each)
        for native, threads in ((True, 1), (True, 2), (False, 1)):
            close(session(serialized, native=native, threads=threads).run(None, feeds)[0], wanted)


@pytest.mark.parametrize("make", [row_skip, gated_mlp])
@pytest.mark.parametrize("format", ["f32", "int4"])
@pytest.mark.parametrize("native", [True, False])
def test_the_profile_says_what_ran(make, format, native, tmp_path):
    serialized, feeds, _ = make(np.random.default_rng(1), format, 64, 64, (1, 1), False)
    running = session(serialized, native=native, profile=tmp_path)
    running.run(None, feeds)
    events = json.loads(Path(running.end_profiling()).read_text())
    ran = {event["args"]["op_name"] for event in events if event.get("args", {}).get("op_name")}
    ours = {name for name in ran if name.startswith(tuple(OPERATORS))}
    assert len(ours) == (1 if native else 0)
    assert ("MatMul" in ran) != native


@pytest.mark.parametrize("make", [row_skip, gated_mlp])
@pytest.mark.parametrize("format", ["f32", "int8", "int4"])
def test_threads_change_no_bit(make, format):
    """A product large enough to be cut into pieces; the first products count the threads, later ones use them."""
    serialized, feeds, wanted = make(np.random.default_rng(2), format, 300, 1500, (1, 2), True, dense_from=1000)
    alone = session(serialized, native=True).run(None, feeds)[0]
    close(alone, wanted)
    for threads in (2, 3):
        running = session(serialized, native=True, threads=threads)
        for _ in range(8):
            assert np.array_equal(running.run(None, feeds)[0], alone)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("make", [row_skip, gated_mlp])
def test_nan_is_not_dropped(make, native):
    serialized, feeds, _ = make(np.random.default_rng(3), "f32", 40, 70, (2, 1), False)
    feeds = {name: value.copy() for name, value in feeds.items()}
    list(feeds.values())[-1][1, 0, 7] = np.nan
    result = session(serialized, native=native).run(None, feeds)[0]
    assert np.isnan(result[1]).all() and np.isfinite(result[0]).all()


def test_the_attribute_names_the_dense_path():
    results = []
    for dense_from in (1, 1000):
        rng = np.random.default_rng(4)
        serialized, feeds, wanted = gated_mlp(rng, "f32", 400, 300, (1, 2), False, dense_from=dense_from)
        results.append(session(serialized, native=True).run(None, feeds)[0])
        close(results[-1], wanted)
    assert not np.array_equal(*results)


def test_older_opset_and_one_that_is_too_old():
    serialized, feeds, wanted = row_skip(np.random.default_rng(5), "int4", 40, 70, (1,), False, opset=18)
    for native in (True, False):
        close(session(serialized, native=native).run(None, feeds)[0], wanted)
    with pytest.raises(ValueError, match="18 or newer"):
        ck.function_bodies(17)


def test_sessions_side_by_side_share_the_library():
    made = [row_skip(np.random.default_rng(n), "f32", 40, 70, (1,), False) for n in range(3)]
    running = [session(serialized, native=True) for serialized, _, _ in made]
    for one, (_, feeds, wanted) in zip(running, made, strict=True):
        close(one.run(None, feeds)[0], wanted)


def wrong_width(weight):
    return {"X": [None, 41]}, {"X": np.zeros((1, 41), np.float32)}, weight, np.zeros(1, np.float32)


def wrong_thresholds(weight):
    return {"X": [None, 40]}, {"X": np.zeros((1, 40), np.float32)}, weight, np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("spoil", "said"), [(wrong_width, "X has width 41, the weight 40"), (wrong_thresholds, "T needs 1 or 40")]
)
def test_shapes_that_do_not_fit_are_errors(spoil, said):
    weight = ck.pack_floats(normal(np.random.default_rng(6), 40, 70))
    shapes, feeds, weight, thresholds = spoil(weight)
    running = session(model("RowSkipMatMul", shapes, [weight], thresholds), native=True)
    with pytest.raises(Exception, match=said):
        running.run(None, feeds)


def test_codes_of_another_width_are_errors():
    weight = packed(normal(np.random.default_rng(7), 40, 70), "int4")
    other = ck.Weight("int4", (40, 170), *weight.tensors)
    running = session(model("RowSkipMatMul", {"X": [None, 40]}, [other], np.zeros(1, np.float32)), native=True)
    with pytest.raises(Exception, match="are not those of 170 columns in blocks of 32"):
        running.run(None, {"X": np.zeros((1, 40), np.float32)})


def test_a_path_that_this_processor_lacks_is_an_error(monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNELS_PATH", "avx1024")
    with pytest.raises(Exception, match="avx1024: this processor has no such path"):
        ort.SessionOptions().register_custom_ops_library(str(ck.library_path()))
