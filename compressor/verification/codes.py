"""Whether packed weights stand for exactly what the compressed model had: unpacked by the operators' own rules.

compression.json records, for each stored tensor of codes, the sha256 of the float32 weights [outputs, inputs] that the
torch-side model held. Here the graph's codes, scales and zero points are read as the runtime's operators define them,
dequantised and hashed: one swapped nibble, stale scale or wrong zero point changes the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor._lazy import lazy
from compressor.verification.packed import check_scheme, checkpoint_weights
from compressor.verification.verdict import Check, failed, yes
from compressor.verification.weights import StoredWeights

onnx = lazy("onnx")
KEY, INPUTS = "codes", "input_grids"
FACTORS = ".input_factors"
"""How names of factors end by which the input of an integer product is multiplied first."""


def digest(parts: Iterable[NDArray[np.float32]]) -> str:
    """Return the sha256 of matrices [outputs, inputs] laid one after another along the outputs."""
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
    return found.hexdigest()


def check_codes(weights: StoredWeights, manifest: Mapping[str, Any]) -> list[Check]:
    """Check that every quantized weight is recorded, and dequantises to what is recorded."""
    recorded = manifest.get(KEY)
    if not recorded and not weights.quantized:
        return []
    if not isinstance(recorded, dict):
        return [yes("weights.codes", False, "weights are quantized, but compression.json records no codes")]
    seen, wrong = set(), []
    checks = [] if weights.is_onnx else check_scheme(weights)
    try:
        for name, matrix in dequantised(weights) if weights.is_onnx else checkpoint_weights(weights):
            seen.add(name)
            if recorded.get(name) != digest([matrix]):
                wrong.append(name)
    except Exception as error:  # damaged codes can break any step of the unpacking
        return [*checks, failed("weights.codes", error)]
    missing = sorted(set(recorded) - seen)
    reason = f"codes of {', '.join(wrong[:4])} do not stand for the weights that were quantized" if wrong else ""
    reason = reason or (f"the artifact has no codes {', '.join(missing[:4])}" if missing else "")
    return [*checks, yes("weights.codes", not reason, reason, value=len(seen))]


def dequantised(weights: StoredWeights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every quantized weight of a graph: name of its codes, and float32 [outputs, inputs]; one at a time."""
    read = _Reader(weights)
    done: set[str] = set()
    for node in weights.model.graph.node:
        unpack = _UNPACK.get(node.op_type)
        found = unpack(read, node) if unpack is not None else None
        if found is not None and found[0] not in done:
            done.add(found[0])
            yield found


def check_inputs(weights: StoredWeights, manifest: Mapping[str, Any]) -> list[Check]:
    """Check that a graph rounds every calibrated input to the grid that compression.json records."""
    recorded = manifest.get(INPUTS) or {}
    found = input_grids(weights) if weights.is_onnx else {}
    if not weights.is_onnx or not (found or recorded):
        return []
    wrong = sorted(name for name in found.keys() | recorded.keys() if found.get(name) != recorded.get(name))
    shown = wrong[0] if wrong else ""
    reason = (
        f"the input of {shown} is rounded to step and zero point {found.get(shown)}, calibrated were "
        f"{recorded.get(shown)} ({len(wrong)} differ)"
    )
    return [yes("weights.inputs", not wrong, reason, value=len(found))]


def input_grids(weights: StoredWeights) -> dict[str, list[float]]:
    """Return name of stored codes -> step and zero point of the product's input, of QDQ graphs.

    Where an input is rounded to one grid and widened from another, both stand there.
    """
    read, found = _Reader(weights), {}
    for node in weights.model.graph.node:
        product = next(iter(read.consumers.get(node.output[0], [])), None)
        if node.op_type != "DequantizeLinear" or product is None or product.op_type != "MatMul":
            continue
        if product.input[1] != node.output[0]:
            continue
        codes = node.input[0] if node.input[0] in read else read.producers[node.input[0]].input[0]
        widened = read.producers[product.input[0]]
        rounded = read.producers[widened.input[0]]
        ends = [_step_and_zero(read, end) for end in (rounded, widened)]
        found[codes] = ends[0] if ends[0] == ends[1] else ends[0] + ends[1]
    return found


def _step_and_zero(read: _Reader, node: Any) -> list[float]:
    """Return step and zero point of QuantizeLinear or DequantizeLinear, as of unsigned codes."""
    step, zero = (read.array(name) for name in node.input[1:3])
    return [float(step), float(zero) + (128 if zero.dtype == np.int8 else 0)]


class _Reader:
    """Initializers and producers of a graph, by name."""

    def __init__(self, weights: StoredWeights) -> None:
        self._folder = str(weights.folder)
        self._tensors = {t.name: t for t in weights.model.graph.initializer}
        self.producers = {out: node for node in weights.model.graph.node for out in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in weights.model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = onnx.numpy_helper.to_array(self._tensors[name], base_dir=self._folder)
        return found


Found = tuple[str, NDArray[np.float32]]


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the codes in bytes [..., n], lowest bits first: [..., n · 8 / bits]."""
    mask, shifts = np.uint8((1 << bits) - 1), np.arange(0, 8, bits, dtype=np.uint8)
    spread = (packed[..., None] >> shifts) & mask
    return np.asarray(spread.reshape(*packed.shape[:-1], -1), dtype=np.uint8)


def _from_blocks(
    read: _Reader, codes: str, scale: str, zero: str, bits: int, sides: tuple[int, int], block: int
) -> NDArray[np.float32]:
    outputs, inputs = sides
    groups = -(-inputs // block)
    values = _unpacked(read.array(codes).reshape(outputs, groups, -1), bits).astype(np.float32)
    if zero:
        zeros = _unpacked(read.array(zero).reshape(outputs, -1), bits)[:, :groups, None].astype(np.float32)
    else:
        zeros = np.full((1, 1, 1), 1 << (bits - 1), np.float32)
    scaled = (values - zeros) * read.array(scale).reshape(outputs, groups, 1)
    return np.asarray(scaled.reshape(outputs, -1)[:, :inputs], dtype=np.float32)


def _attributes(node: Any) -> dict[str, int]:
    return {a.name: a.i for a in node.attribute}


def _nbits(read: _Reader, node: Any) -> Found | None:
    """MatMulNBits: A, B, scales, zero_points."""
    facts, names = _attributes(node), [*node.input, "", ""]
    sides = (facts["N"], facts["K"])
    return names[1], _from_blocks(read, names[1], names[2], names[3], facts["bits"], sides, facts["block_size"])


def _gather_blocks(read: _Reader, node: Any) -> Found | None:
    """GatherBlockQuantized: data, indices, scales, zero_points; the data is a Reshape of blocks."""
    facts, names = _attributes(node), [*node.input, ""]
    codes = names[0] if names[0] in read else read.producers[names[0]].input[0]
    outputs, groups, _ = read.array(codes).shape
    sides = (outputs, groups * facts["block_size"])
    matrix = _from_blocks(read, codes, names[2], names[3], facts["bits"], sides, facts["block_size"])
    for use in read.consumers.get(node.output[0], []):
        if use.op_type == "Slice":  # rows whose length is no multiple of a block
            matrix = matrix[:, : int(read.array(use.input[2])[0])]
    return codes, matrix


def _integers(read: _Reader, node: Any) -> Found | None:
    """MatMulInteger: the scales of the weight are a factor of the product's."""
    codes = node.input[1]
    if codes not in read:
        return None
    signed = read.array(codes).astype(np.float32)
    if len(node.input) > 3 and node.input[3]:
        signed = signed - read.array(node.input[3]).astype(np.float32)
    (cast,) = read.consumers[node.output[0]]
    (scaled,) = read.consumers[cast.output[0]]
    factor = next(read.producers[name] for name in scaled.input if name != cast.output[0])
    scale = next(read.array(name) for name in factor.input if name in read)
    scaled_by = scale.reshape(1, -1) * _input_factors(read, read.producers[node.input[0]])
    return codes, np.ascontiguousarray((signed * scaled_by).T, dtype=np.float32)


def _input_factors(read: _Reader, quantize: Any) -> NDArray[np.float32]:
    """Return what the input of a QuantizeLinear or DynamicQuantizeLinear was multiplied by, [inputs, 1]; or a 1."""
    product = read.producers.get(quantize.input[0])
    if product is not None and product.op_type == "Unsqueeze":
        product = read.producers.get(product.input[0])
    name = product.input[1] if product is not None and product.op_type == "Mul" else ""
    widened = read.producers.get(name)
    name = widened.input[0] if widened is not None and widened.op_type == "Cast" else name
    if not name.endswith(FACTORS):
        return np.ones((1, 1), np.float32)
    return read.array(name).astype(np.float32).reshape(-1, 1)


def _dequantize(read: _Reader, node: Any) -> Found | None:
    """DequantizeLinear of a stored weight [inputs, outputs], one scale per output."""
    codes = node.input[0]
    if codes not in read:
        return None
    zero = read.array(node.input[2]).astype(np.float32) if len(node.input) > 2 else 0.0
    (product,) = read.consumers[node.output[0]]
    factors = _input_factors(read, read.producers[read.producers[product.input[0]].input[0]])
    wide = (read.array(codes).astype(np.float32) - zero) * (read.array(node.input[1]).reshape(1, -1) * factors)
    return codes, np.ascontiguousarray(wide.T, dtype=np.float32)


def _gather_rows(read: _Reader, node: Any) -> Found | None:
    """Gather of bytes, whose rows are widened and multiplied by gathered scales."""
    codes = node.input[0]
    if codes not in read or read.array(codes).dtype != np.int8:
        return None
    (cast,) = read.consumers[node.output[0]]
    (scaled,) = read.consumers[cast.output[0]]
    factors = next(read.producers[name] for name in scaled.input if name != cast.output[0])
    return codes, read.array(codes).astype(np.float32) * read.array(factors.input[0]).reshape(-1, 1)


_UNPACK = {
    "MatMulNBits": _nbits,
    "GatherBlockQuantized": _gather_blocks,
    "MatMulInteger": _integers,
    "DequantizeLinear": _dequantize,
    "Gather": _gather_rows,
}
