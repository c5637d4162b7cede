"""Grids of quantized weights: which few values the entries of a matrix may take, group by group.

    w = (code − zero point) · scale,   code ∈ 0 … 2^bits − 1

A quantized model folder holds the weights dequantised, in float32, and beside each its grid; the codes follow from both
without loss. So everything that reads a float model reads a quantized one, and an exporter that knows grids packs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from compressor._lazy import lazy
from compressor.errors import ModelError

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

SECTION = "compression_grids"
"""Key of config.json that says which weights of a folder lie on grids."""

SCALE, ZERO_POINT = "weight_scale", "weight_zero_point"
Activations = Literal["float", "dynamic", "static"]


@dataclass(frozen=True)
class GridSpec:
    """What a grid is, without its numbers.

    Attributes:
        bits: of a code, 2 to 8.
        group_size: consecutive inputs that share a scale; 0 for one scale per output (row).
        symmetric: whether every zero point is 2^(bits − 1).
        activations: in what the product with this weight is computed: `float`, or 8-bit integers whose range is found
            anew at every call (`dynamic`) or was calibrated (`static`).
        input_scale: static: step of the input's 8-bit codes.
        input_zero_point: static: code of an input of 0, 0 to 255.
        accuracy_level: weight-only products: 4 lets ONNX Runtime round a block's inputs to 8 bits, 0 does not.
    """

    bits: int
    group_size: int
    symmetric: bool
    activations: Activations = "float"
    input_scale: float = 0.0
    input_zero_point: int = 0
    accuracy_level: int = 4

    def groups(self, inputs: int) -> int:
        """Return how many scales a row of `inputs` entries has; the last group may be shorter."""
        return -(-inputs // self.group_size) if self.group_size else 1

    def bytes(self, outputs: int, inputs: int) -> int:
        """Return the bytes of codes, scales (float32) and zero points, packed as MatMulNBits has them."""
        groups = self.groups(inputs)
        if self.activations != "float":
            return outputs * inputs + 4 * outputs
        codes = groups * (self.group_size or inputs) * self.bits // 8
        zero_points = 0 if self.symmetric else -(-groups * self.bits // 8)
        return outputs * (codes + 4 * groups + zero_points)


@dataclass(frozen=True)
class Grid:
    """A grid with its numbers.

    Attributes:
        spec: bits, groups and kind.
        scale: float32 [outputs, groups], never zero; may be negative.
        zero_point: uint8 [outputs, groups]; None for symmetric grids.
    """

    spec: GridSpec
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None

    def _spread(self, values: torch.Tensor, inputs: int) -> torch.Tensor:
        """Repeat values [outputs, groups] for every input of their group: [outputs, inputs]."""
        return values.repeat_interleave(self.spec.group_size or inputs, dim=1)[:, :inputs]

    def zero(self, inputs: int) -> torch.Tensor | float:
        """Return the zero points, [outputs, inputs] float32, or the one number that symmetric grids share."""
        if self.zero_point is None:
            return float(1 << (self.spec.bits - 1))
        return self._spread(self.zero_point.float(), inputs)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes of a weight [outputs, inputs]: uint8 of the same shape."""
        inputs = weight.shape[1]
        codes = torch.round(weight / self._spread(self.scale, inputs)) + self.zero(inputs)
        return codes.clamp_(0, (1 << self.spec.bits) - 1).to(torch.uint8)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the float32 values that codes [outputs, inputs] stand for."""
        inputs = codes.shape[1]
        return (codes.float() - self.zero(inputs)) * self._spread(self.scale, inputs)

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight [outputs, inputs] with every entry at the nearest value of the grid, float32."""
        return self.values(self.codes(weight))

    def exact_codes(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """Return the codes of a weight that lies on the grid.

        Raises:
            ModelError: it does not: the codes would stand for other values.
        """
        codes = self.codes(weight)
        if not torch.equal(self.values(codes), weight.float()):
            raise ModelError(f"{name}: the weight does not lie on its grid", hint="The model folder was edited.")
        return codes

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what is stored beside the weight, by the last part of the name."""
        stored = {SCALE: self.scale.contiguous()}
        return stored if self.zero_point is None else {**stored, ZERO_POINT: self.zero_point.contiguous()}


def fit_grid(weight: torch.Tensor, spec: GridSpec) -> Grid:
    """Return the grid that covers the range of every group of a weight [outputs, inputs].

    Asymmetric grids go from the least to the greatest entry and hold 0. Symmetric ones give the entry of largest
    magnitude the code 0, which is farthest from the zero point; hence scales of either sign.
    """
    low, high = group_range(weight, spec)
    top = (1 << spec.bits) - 1
    if spec.symmetric:
        largest = torch.where(high > -low, high, low)
        # Bytes leave −128 out: kernels sum pairs of products in 16 bits.
        scale = largest.abs() / 127 if spec.bits == 8 else -largest / (1 << (spec.bits - 1))
        return Grid(spec, torch.where(largest == 0, 1.0, scale))
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / top
    scale = torch.where(scale == 0, 1.0, scale)
    return Grid(spec, scale, torch.round(-low / scale).clamp(0, top).to(torch.uint8))


def fit_rows(weight: torch.Tensor, spec: GridSpec, levels: int) -> Grid:
    """Return the grid whose row i has step max|W_i| / levels; `levels` is 127, or 63 for 7-bit weights."""
    scale = weight.float().abs().amax(1, keepdim=True) / levels
    return Grid(spec, torch.where(scale == 0, 1.0, scale))


def group_range(weight: torch.Tensor, spec: GridSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and the greatest entry of every group, [outputs, groups] float32 each."""
    outputs, inputs = weight.shape
    groups = spec.groups(inputs)
    missing = groups * (spec.group_size or inputs) - inputs
    # A short last group is padded with its last entry, which changes neither end of its range.
    padded = torch.cat([weight, weight[:, -1:].expand(-1, missing)], dim=1).float().reshape(outputs, groups, -1)
    return padded.amin(2), padded.amax(2)


def section(specs: Mapping[str, GridSpec], method: str) -> dict[str, Any]:
    """Return config.json's section on grids: module name -> spec."""
    return {"version": 1, "method": method, "modules": {name: asdict(spec) for name, spec in sorted(specs.items())}}


def read_section(config: Any) -> dict[str, GridSpec]:
    """Return module name -> spec as a config states it; empty for a model without grids.

    Raises:
        ModelError: the section is not one of ours.
    """
    stated = getattr(config, SECTION, None)
    if stated is None:
        return {}
    try:
        if stated["version"] != 1:
            raise ValueError(f"version {stated['version']!r}")
        return {name: GridSpec(**spec) for name, spec in stated["modules"].items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ModelError(f"config.json: {SECTION} does not describe grids: {error}") from error


def precision_of(specs: Mapping[str, GridSpec], dtype: str) -> str:
    """Return the name of a model's precision: its dtype, `int8-dynamic`, `int8-static`, `int8-weights` or `int4`."""
    for kind in ("dynamic", "static"):
        if any(spec.activations == kind for spec in specs.values()):
            return f"int8-{kind}"
    if not specs:
        return dtype
    return "int8-weights" if min(spec.bits for spec in specs.values()) == 8 else "int4"
