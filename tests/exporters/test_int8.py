"""Integer products in graphs: the operators' definitions in numpy, what ONNX Runtime fuses, and sabotage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.pipeline.artifact import code_digests, input_grids
from compressor.verification.codes import INPUTS, KEY, check_codes, check_inputs
from compressor.verification.reference import check_reference, write_reference
from compressor.verification.weights import open_weights
from tests.core.test_loading import inputs_for
from tests.core.toy import toy_batches

Array = np.ndarray[Any, Any]
FAMILIES = ["bert", "vit", "deit", "llama", "qwen2", "opt"]
# Every family and every method, but not each on each.
ALWAYS = {("int8-dynamic", "llama"), ("int8-dynamic", "bert"), ("int8-static", "opt"), ("int8-static", "vit")}
CASES = [
    pytest.param(name, family, marks=[pytest.mark.exhaustive] * ((name, family) not in ALWAYS))
    for name in ("int8-dynamic", "int8-static")
    for family in FAMILIES
]
Made = Callable[[str, str], tuple[ModelFolder, Path, dict[str, str]]]


@pytest.fixture(scope="module")
def made(pico: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return `made(method, family)`: the quantized model, its export and its digests; all inputs are smoothed."""
    root = tmp_path_factory.mktemp("int8")
    kept: dict[tuple[str, str], tuple[ModelFolder, Path, dict[str, str]]] = {}

    def make(name: str, family: str) -> tuple[ModelFolder, Path, dict[str, str]]:
        if (name, family) not in kept:
            source, out = open_model(pico(family)), root / f"{name}-{family}"
            method = methods()[name](methods()[name].Options())
            setting = Setting(work=root / f"work-{name}-{family}", fingerprint="f", cache_bytes=1 << 30)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("compressor.passes.quantize._int8.smooth.WORTHWHILE", 1.0)
                model, _ = apply_pass(method, source, toy_batches(source.task), setting)
            out.mkdir()
            result = export_onnx(model, out)
            kept[name, family] = model, out, code_digests(model, result.codes)
        return kept[name, family]

    return make


def feed_of(task: str) -> dict[str, Array]:
    return {key: value.numpy() for key, value in inputs_for(task).items()}


def session(path: Path, **options: Any) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in options.items():
        setattr(settings, key, value)
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def traced(out: Path, target: Path, task: str) -> tuple[Any, dict[str, Array]]:
    """Run the graph unfused, every value an output; return the graph and all values, initializers included."""
    model = onnx.load(str(out / "model.onnx"))
    graph = model.graph
    wanted = [n.output[0] for n in graph.node] + [o for n in graph.node for o in n.output[1:] if o]
    known = {o.name for o in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    onnx.save(model, str(target))
    run = session(target, graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    names = {i.name: i for i in run.get_inputs()}
    feed = {k: v for k, v in feed_of(task).items() if k in names}
    ids = next(iter(feed.values()))
    feed.setdefault("attention_mask", np.ones(ids.shape[:2], np.int64))
    if "position_ids" in names:
        feed["position_ids"] = np.arange(ids.shape[1])[None].repeat(len(ids), 0)
    if "token_type_ids" in names:
        feed.setdefault("token_type_ids", np.zeros_like(ids))
    for name, port in names.items():
        if name.startswith("past_key_values"):
            feed[name] = np.zeros((len(ids), port.shape[1], 0, port.shape[3]), np.float32)
    outputs = [o.name for o in run.get_outputs()]
    values = dict(zip(outputs, run.run(outputs, {k: v for k, v in feed.items() if k in names}), strict=True))
    values |= {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer} | feed
    return graph, values


def quantized(x: Array, scale: float, zero: int) -> Array:
    return np.clip(np.round(x.astype(np.float64) / scale) + zero, 0, 255)


def assert_codes(found: Array, wanted: Array) -> None:
    """Equal, but for values that lie on the edge between two codes."""
    off = np.abs(found.astype(np.int64) - wanted)
    assert off.max() <= 1 and (off > 0).mean() < 2e-3


@pytest.mark.parametrize(("name", "family"), CASES)
def test_operators_compute_what_they_should(made: Made, tmp_path: Path, name: str, family: str) -> None:
    model, out, _ = made(name, family)
    graph, values = traced(out, tmp_path / "traced.onnx", model.task)
    producers = {o: n for n in graph.node for o in n.output}
    weights = {f"{m}.weight": model.weights.tensor(f"{m}.weight").double().numpy() for m in model.grids}
    checked = 0
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            x = values[node.input[0]].astype(np.float64)
            low, high = min(x.min(), 0.0), max(x.max(), 0.0)
            scale, zero = values[node.output[1]], values[node.output[2]]
            assert scale == pytest.approx((high - low) / 255, rel=1e-6)
            assert int(zero) == np.clip(np.round(-low / ((high - low) / 255)), 0, 255)
            assert_codes(values[node.output[0]], quantized(x, float(scale), int(zero)))
        elif node.op_type == "MatMulInteger":
            codes, zero = values[node.input[0]].astype(np.int64), values[node.input[2]].astype(np.int64)
            assert np.array_equal(values[node.output[0]], (codes - zero) @ values[node.input[1]].astype(np.int64))
        elif node.op_type == "QuantizeLinear":
            scale, zero = values[node.input[1]], values[node.input[2]]
            assert_codes(values[node.output[0]], quantized(values[node.input[0]], float(scale), int(zero)))
        found = product(node, producers, values)
        if found is not None:
            module, source, x = found
            if f"{module}.weight" in weights:
                # The quantized input times the dequantised weight of the model in PyTorch, in float64.
                factors = values[source.input[1]] if source is not None else np.ones(x.shape[-1])
                wanted = (x / factors) @ weights[f"{module}.weight"].T
                np.testing.assert_allclose(values[node.output[0]], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
                checked += 1
    assert checked >= 3 * 3, "products of all blocks, packed ones aside, were compared"


def product(node: Any, producers: dict[str, Any], values: dict[str, Array]) -> tuple[str, Any, Array] | None:
    """Return of the last node of a product: the module, the Mul by factors or None, and the dequantised input."""
    if node.op_type == "Mul" and (cast := producers.get(node.input[0])) is not None and cast.op_type == "Cast":
        summed = producers.get(cast.input[0])
        if summed is None or summed.op_type != "MatMulInteger" or summed.input[1] in producers:
            return None
        quantize = producers[summed.input[0]]
        scale, zero = values[quantize.output[1]], values[quantize.output[2]]
        x = (values[summed.input[0]].astype(np.float64) - float(zero)) * float(scale)
        name = summed.input[1]
    elif node.op_type == "MatMul" and (wide := producers.get(node.input[1])) is not None:
        if wide.op_type != "DequantizeLinear" or wide.input[0] in producers:
            return None
        name, x = wide.input[0], values[node.input[0]].astype(np.float64)
        quantize = producers[producers[node.input[0]].input[0]]
    else:
        return None
    source = producers.get(quantize.input[0])
    source = producers.get(source.input[0]) if source is not None and source.op_type == "Unsqueeze" else source
    multiplied = source is not None and source.op_type == "Mul" and "input_factors" in name_behind(source, producers)
    return name.removesuffix(".weight_int8"), source if multiplied else None, x


def name_behind(mul: Any, producers: dict[str, Any]) -> str:
    cast = producers.get(mul.input[1])
    return str(cast.input[0] if cast is not None else mul.input[1])


@pytest.mark.parametrize(("name", "family"), CASES)
def test_onnx_runtime_fuses_all_products(made: Made, tmp_path: Path, name: str, family: str) -> None:
    model, out, _ = made(name, family)
    target = tmp_path / "optimised.onnx"
    session(out / "model.onnx", optimized_model_filepath=str(target))
    optimised = onnx.load(str(target), load_external_data=False).graph
    kinds = Counter(node.op_type for node in optimised.node)
    assert kinds["MatMulInteger"] == kinds["DequantizeLinear"] == 0
    fused = kinds["DynamicQuantizeMatMul"] + kinds["MatMulIntegerToFloat"]
    layers = len(model.shapes.layers)
    assert fused >= layers * (4 if model.task == "text-generation" else 6)
    head = [n for n in optimised.node if n.op_type == "Transpose" and n.input[0].endswith("weight_int8")]
    assert not head, "a shared embedding is turned once, when the session starts"


@pytest.mark.parametrize(("name", "family"), CASES)
def test_close_to_the_model_in_float(made: Made, name: str, family: str) -> None:
    model, out, _ = made(name, family)
    with torch.no_grad():
        wanted = model.load()(**inputs_for(model.task))[0].numpy()
    found = OnnxRunner(out).forward(feed_of(model.task))
    cosine = (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize(("name", "family"), CASES)
def test_parity_gate_holds(made: Made, tmp_path: Path, name: str, family: str) -> None:
    model, out, _ = made(name, family)
    write_reference(TorchRunner(model.path), tmp_path / "reference.safetensors")
    checks = check_reference(OnnxRunner(out), tmp_path / "reference.safetensors", name)
    # The winners of a random model are near ties.
    checks = [check for check in checks if "cosine" in check.name]
    assert checks and [c.name for c in checks if not c.passed] == []


def edited(out: Path, target: Path, change: Callable[[Any], None]) -> Path:
    target.mkdir()
    model = onnx.load(str(out / "model.onnx"))
    change(model.graph)
    onnx.save(model, str(target / "model.onnx"))
    return target


def changed(graph: Any, ending: str, edit: Callable[[Array], None]) -> None:
    tensor = next(t for t in graph.initializer if t.name.endswith(ending))
    array = onnx.numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def flip(array: Array) -> None:
    array[1, 2] += 1 if array[1, 2] < 100 else -1


def stretch(array: Array) -> None:
    array.reshape(-1)[1] *= 2


@pytest.mark.parametrize(("name", "family"), CASES)
def test_digests_hold_and_catch_sabotage(made: Made, tmp_path: Path, name: str, family: str) -> None:
    _, out, digests = made(name, family)

    def reasons(folder: Path, recorded: dict[str, str] = digests) -> list[str]:
        return [c.reason for c in check_codes(open_weights(folder), {KEY: recorded}) if not c.passed]

    assert reasons(out) == []
    endings: list[tuple[str, Callable[[Array], None]]] = [(".weight_int8", flip), (".weight_scales", stretch)]
    if any(t.name.endswith(".input_factors") for t in onnx.load(str(out / "model.onnx")).graph.initializer):
        endings.append((".input_factors", stretch))
    for ending, edit in endings:
        broken = edited(out, tmp_path / ending[1:], lambda g, e=ending, f=edit: changed(g, e, f))  # type: ignore[misc]
        assert reasons(broken), f"an edited {ending} goes unnoticed"
    assert reasons(out, dict(list(digests.items())[1:])), "codes that nobody recorded"


def test_arm_takes_signed_inputs_of_the_same_steps(made: Made, tmp_path: Path) -> None:
    model, unsigned, _ = made("int8-static", "bert")
    signed = tmp_path / "signed"
    signed.mkdir()
    result = export_onnx(model, signed, OnnxOptions(arm=True))
    stored = {t.name: t for t in onnx.load(str(signed / "model.onnx")).graph.initializer}
    kinds = {t.data_type for name, t in stored.items() if name.endswith(".input_zero_point")}
    assert kinds == {onnx.TensorProto.INT8}
    recorded = {INPUTS: input_grids(model, result.codes)}
    assert recorded[INPUTS] and all(check.passed for check in check_inputs(open_weights(signed), recorded))
    # On x86, ONNX Runtime makes unsigned bytes of them: the same products, but for those that 16 bits cut off.
    (signed / "compression.json").write_text('{"target": "arm64"}')
    feed = feed_of(model.task)
    assert np.array_equal(OnnxRunner(signed, settings=()).forward(feed), OnnxRunner(unsigned).forward(feed))
    found, expected = OnnxRunner(signed).forward(feed), TorchRunner(model.path).forward(feed)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_tied_head_is_stored_once(made: Made) -> None:
    model, out, _ = made("int8-dynamic", "llama")
    assert model.blueprint.tied
    tensors = onnx.load(str(out / "model.onnx")).graph.initializer
    vocabulary, width = model.weights.shape("model.embed_tokens.weight")
    assert [t.name for t in tensors if sorted(t.dims) == sorted((vocabulary, width))] == [
        "model.embed_tokens.weight_int8"
    ]
    assert sum(vocabulary in t.dims for t in tensors) == 2, "codes and scales"
