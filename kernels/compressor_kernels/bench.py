"""Measures the operators against ONNX Runtime's own products of the same precision, in one interleaved run.

    python -m compressor_kernels.bench --formats f32 int4 --sparsities 0 0.5 > bench.json

Each graph is a chain of gated feed-forward layers, x + down(silu(gate x) · up x), with weights of their own, so that
all of them together do not fit the caches. `dense` has MatMul (for f16 in a float16 graph, for bf16 in float32) or, for
int8 and int4, MatMulNBits with accuracy_level 4. `cats` keeps the gate's product (in float32 for f16 and bf16) and
skips rows of up and down; `teal` skips rows of all three.

Silent inputs are drawn at random: thresholds have no say in the time. The row of sparsity 0 shows what is owed to the
kernel and not to sparsity. `best_ms` is the shortest run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor_kernels._functions import DOMAIN, function_bodies, operator
from compressor_kernels._library import library_path, path
from compressor_kernels._weights import BLOCK, Weight, pack_floats

SUMMARY = "Measures the operators against ONNX Runtime's own products of the same precision."
FORMATS = ("f32", "f16", "bf16", "int8", "int4")
METHODS = ("cats", "teal")


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer, how many layers there are, and how many tokens each run has."""

    width: int
    neurons: int
    layers: int
    tokens: int


class _Graph:
    """Collects nodes and initializers."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.stored: list[Any] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def store(self, name: str, array: NDArray[Any]) -> str:
        import onnx

        self.stored.append(onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, weight: Weight) -> list[str]:
        """Store a weight; return the names of its tensors."""
        import onnx

        if weight.format == "bf16":
            kind = onnx.TensorProto.BFLOAT16
            self.stored.append(onnx.helper.make_tensor(name, kind, weight.shape, weight.data.tobytes(), raw=True))
            return [name]
        ends = ("", "_scale", "_zero")
        return [self.store(name + end, t) for t, end in zip(weight.tensors, ends, strict=False)]

    def serialized(self, shape: Shape, elements: int) -> bytes:
        import onnx

        info = onnx.helper.make_tensor_value_info
        ends = [info(n, elements, [1, shape.tokens, shape.width]) for n in ("x0", f"x{shape.layers}")]
        graph = onnx.helper.make_graph(self.nodes, "bench", ends[:1], ends[1:], self.stored)
        domains = (("", 21), (DOMAIN, 1), ("com.microsoft", 1))
        imports = [onnx.helper.make_opsetid(*each) for each in domains]
        model = onnx.helper.make_model(graph, opset_imports=imports, functions=function_bodies(21), ir_version=10)
        return bytes(model.SerializeToString())


def _random(rng: np.random.Generator, rows: int, columns: int, inputs: int, format: str) -> Weight:
    """Return a weight of random content: sizes count here, and values only in that sums stay finite."""
    size = np.float32(1 / np.sqrt(inputs))
    if not format.startswith("int"):
        return pack_floats((rng.random((rows, columns), np.float32) - np.float32(0.5)) * size, format)
    bits, blocks = int(format[3]), -(-columns // BLOCK)
    codes = rng.integers(0, 256, (rows, blocks, BLOCK * bits // 8), np.uint8)
    scale = np.full((rows, blocks), size / 2**bits, np.float32)
    return Weight(format, (rows, columns), codes, scale, np.full(1, 2 ** (bits - 1), np.uint8))


def _dense(graph: _Graph, rng: np.random.Generator, x: str, inputs: int, outputs: int, name: str, format: str) -> str:
    """Add a product by ONNX Runtime's own operator."""
    if not format.startswith("int"):
        weight = _random(rng, inputs, outputs, inputs, format)
        return graph.add("MatMul", [x, graph.store(f"{name}.w", weight.data)], name)
    packed = _random(rng, outputs, inputs, inputs, format)
    names = [graph.store(f"{name}.w", packed.data), graph.store(f"{name}.s", packed.tensors[1])]
    return graph.add(
        "MatMulNBits", [x, *names], name, "com.microsoft",
        K=inputs, N=outputs, bits=int(format[3]), block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip


def _silu(graph: _Graph, x: str, name: str) -> str:
    return graph.add("Mul", [x, graph.add("Sigmoid", [x], f"{name}.sigmoid")], f"{name}.silu")


def _chosen(graph: _Graph, rng: np.random.Generator, name: str, width: int, sparsity: float) -> str:
    """Store thresholds that silence a random share of the inputs for certain, and none of the others."""
    thresholds = np.full(width, -1, np.float32)
    thresholds[rng.permutation(width)[: round(sparsity * width)]] = np.inf
    return graph.store(f"{name}.t", thresholds)


def _layer(graph: _Graph, rng: np.random.Generator, at: int, shape: Shape, format: str, method: str, s: float) -> None:
    width, neurons = shape.width, shape.neurons
    x, n = f"x{at}", f"layer{at}"

    def skip(source: str, inputs: int, outputs: int, name: str) -> str:
        names = graph.weight(f"{name}.w", _random(rng, inputs, outputs, inputs, format))
        wide = {"N": outputs} if format.startswith("int") else {}
        limit = _chosen(graph, rng, name, inputs, s)
        return graph.add(operator("RowSkipMatMul", format), [source, *names, limit], name, DOMAIN, **wide)

    def dense(source: str, inputs: int, outputs: int, name: str) -> str:
        # ONNX Runtime has no MatMul of float inputs with float16 weights, nor any of bfloat16.
        kept = "f32" if format == "bf16" or (format == "f16" and method == "cats") else format
        return _dense(graph, rng, source, inputs, outputs, name, kept)

    if method == "cats":
        activation = _silu(graph, dense(x, width, neurons, f"{n}.g"), n)
        weights = [_random(rng, neurons, width, size, format) for size in (width, neurons)]
        names = [t for w, end in zip(weights, "ud", strict=True) for t in graph.weight(f"{n}.{end}", w)]
        wide = {"N": width} if format.startswith("int") else {}
        names = [x, activation, *names, _chosen(graph, rng, n, neurons, s)]
        out = graph.add(operator("SparseGatedMLP", format), names, f"{n}.m", DOMAIN, **wide)
    else:
        product = skip if method == "teal" else dense
        activation = _silu(graph, product(x, width, neurons, f"{n}.g"), n)
        hidden = graph.add("Mul", [activation, product(x, width, neurons, f"{n}.u")], f"{n}.h")
        out = product(hidden, neurons, width, f"{n}.d")
    graph.add("Add", [x, out], f"x{at + 1}")


def _session(shape: Shape, format: str, method: str, sparsity: float, threads: int) -> Callable[[], Any]:
    """Return what runs one graph once."""
    import onnx
    import onnxruntime as ort

    graph, rng = _Graph(), np.random.default_rng(0)
    for at in range(shape.layers):
        _layer(graph, rng, at, shape, format, method, sparsity)
    half = format == "f16" and method == "dense"
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(graph.serialized(shape, kind), options, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((1, shape.tokens, shape.width)).astype(np.float16 if half else np.float32)
    return lambda: session.run(None, {"x0": x})


def measure(
    shape: Shape, format: str, sparsities: Sequence[float], methods: Sequence[str], *, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Return one row for each method and sparsity: median milliseconds of a layer, and the speed-up over dense.

    The graphs take turns, so that each round meets the same machine; the ratio is the median over rounds.
    """
    cases = [("dense", 0.0), *((m, s) for m in methods for s in sparsities)]
    runs = [_session(shape, format, method, sparsity, threads) for method, sparsity in cases]
    for run in runs:
        run()
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, times in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    rows = []
    for (method, sparsity), times in zip(cases, taken, strict=True):
        ratio = statistics.median(base / own for base, own in zip(taken[0], times, strict=True))
        middle = statistics.median(times) / shape.layers * 1000
        row = {"format": format, "method": method, "sparsity": sparsity, "tokens": shape.tokens}
        best = min(times) / shape.layers * 1000
        rows.append({**row, "layer_ms": round(middle, 4), "best_ms": round(best, 4), "speedup": round(ratio, 3)})
    return rows


def environment(threads: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    import onnxruntime as ort

    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "path": path(),
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": threads,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m compressor_kernels.bench", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--formats", nargs="+", default=["f32", "f16", "int8", "int4"], choices=FORMATS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--neurons", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    shape = Shape(given.width, given.neurons, given.layers, given.tokens)
    rows = []
    for format in given.formats:
        rows += measure(shape, format, given.sparsities, given.methods, repeats=given.repeats, threads=given.threads)
    shown = {"width": shape.width, "neurons": shape.neurons, "layers": shape.layers, "repeats": given.repeats}
    json.dump({"environment": environment(given.threads), **shown, "rows": rows}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
