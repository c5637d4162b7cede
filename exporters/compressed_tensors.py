"""Quantized weights as compressed-tensors has them, which stock transformers loads when that library is installed.

| module | format | tensors |
|---|---|---|
| linear, float activations | `pack-quantized` | `weight_packed`, `weight_shape`, `weight_scale`, `weight_zero_point` |
| linear, 8-bit activations | `int-quantized` | `weight` (int8), `weight_scale`; static: `input_*` of both kinds |
| embedding | `int-quantized`, weights alone | `weight` (int8), `weight_scale`, `weight_zero_point` |

What transformers 5.23 with compressed-tensors 0.20 loads decides (each case was tried):

* The strategy `group` allows no shorter last group, and its packed zero points are refused: the modules that are
  prepared for them expect bytes. So only symmetric grids of whole groups have it. All others have the strategy `block`,
  blocks of one output by `group_size` inputs, with zero points in bytes: the same numbers, loaded to the same bits.
* A packed embedding is refused, as it has no `weight` to initialise; its codes are stored one per byte.
* A head tied to a quantized embedding shares its codes, and has scales and zero points of its own: copies.

Dynamic 8-bit activations are stated per token, signed and symmetric, as engines that read the format implement them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.storage.grids import SCALE, ZERO_POINT, GridSpec
from compressor.storage.packed import PACKED, SHAPE, pack_words, signed, words
from compressor.storage.tensors import Plan

if TYPE_CHECKING:
    import torch

    from compressor.model.folder import ModelFolder
else:
    torch = lazy("torch")

PACK, INT = "pack-quantized", "int-quantized"
INPUT_SCALE, INPUT_ZERO_POINT = "input_scale", "input_zero_point"


class Layout:
    """How the quantized modules of one model are stored.

    Attributes:
        codes: stored name of codes -> the module whose weight they hold; a tied head counts as the embedding.
        tied: names of a head tied to a quantized embedding, and of the embedding; None where there are none.
    """

    def __init__(self, source: ModelFolder) -> None:
        """Take a model with grids; no weights are read."""
        self._source = source
        model = source.skeleton()
        names = {module: name for name, module in model.named_modules(remove_duplicate=False)}
        self._linear = [name for module, name in names.items() if type(module).__name__ == "Linear"]
        self._head = names.get(model.get_output_embeddings())
        embedding = names[model.get_input_embeddings()]
        tied = self._head is not None and source.blueprint.tied and embedding in source.grids
        self.tied: tuple[str, str] | None = (str(self._head), embedding) if tied else None
        self.codes = {f"{self._stem(m)}.{'weight' if self._in_bytes(m) else PACKED}": [m] for m in source.grids}
        if self.tied is not None:
            self.codes[f"{self.tied[0]}.weight"] = [self.tied[1]]

    def _stem(self, module: str) -> str:
        return self._source.weights.entry(f"{module}.weight").stored.removesuffix(".weight")

    def _in_bytes(self, module: str) -> bool:
        return self._source.grids[module].activations != "float" or module not in self._linear

    def plans(self) -> Iterator[Plan]:
        """Yield the tensors of all quantized modules, each made when its turn to be written comes."""
        for module in self._source.grids:
            yield from self._codes(module)
            yield from self._grid(module, self._stem(module))
        if self.tied is not None:
            head, embedding = self.tied
            yield from self._grid(embedding, head)

    def _codes(self, module: str) -> Iterator[Plan]:
        source, stem = self._source, self._stem(module)
        bits = source.grids[module].bits
        outputs, inputs = source.weights.shape(f"{module}.weight")

        def codes() -> Any:
            return source.grid(module).exact_codes(source.weights.tensor(f"{module}.weight"), module)

        if self._in_bytes(module):
            yield Plan(f"{stem}.weight", "int8", (outputs, inputs), lambda: signed(codes(), bits))
            return
        shape = (outputs, words(inputs, bits))
        yield Plan(f"{stem}.{PACKED}", "int32", shape, lambda: pack_words(codes(), bits))
        yield Plan(f"{stem}.{SHAPE}", "int64", (2,), lambda: torch.tensor([outputs, inputs]))

    def _grid(self, module: str, stem: str) -> Iterator[Plan]:
        source, spec = self._source, self._source.grids[module]
        outputs, inputs = source.weights.shape(f"{module}.weight")
        shape = (outputs, spec.groups(inputs))

        def points() -> Any:
            zero_point = source.grid(module).zero_point
            assert zero_point is not None
            return signed(zero_point, spec.bits)

        def plan(leaf: str, dtype: str, shape: tuple[int, ...], make: Callable[[], Any]) -> Plan:
            return Plan(f"{stem}.{leaf}", dtype, shape, make)

        yield plan(SCALE, "float32", shape, lambda: source.grid(module).scale)
        if not spec.symmetric:
            yield plan(ZERO_POINT, "int8", shape, points)
        if spec.activations == "static" and module in self._linear:
            zero = torch.tensor([spec.input_zero_point], dtype=torch.uint8)
            yield plan(INPUT_SCALE, "float32", (1,), lambda: torch.tensor([spec.input_scale]))
            yield plan(INPUT_ZERO_POINT, "int8", (1,), lambda: signed(zero, 8))

    def config(self) -> dict[str, Any]:
        """Return config.json's `quantization_config`.

        Modules with the same scheme form a group. If all quantized linear modules have the same, it targets their
        class, and linear modules that are not quantized are named under `ignore`; other groups name their modules. The
        head is named besides: in servers it is of another class.
        """
        groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for module in sorted(self._source.grids):
            scheme = self._scheme(module)
            groups.setdefault(repr(scheme), (scheme, []))[1].append(module)
            if self.tied is not None and module == self.tied[1]:
                groups[repr(scheme)][1].append(self.tied[0])
        covered = {name for _, modules in groups.values() for name in modules}
        by_class = sum(any(name in self._linear for name in modules) for _, modules in groups.values()) == 1
        stated = {}
        for index, (scheme, modules) in enumerate(groups.values()):
            if by_class and set(modules) <= set(self._linear):
                modules = ["Linear", *(name for name in modules if name == self._head)]
            stated[f"group_{index}"] = {"targets": modules, **scheme}
        formats = sorted({scheme["format"] for scheme, _ in groups.values()})
        return {
            "quant_method": "compressed-tensors",
            "format": formats[0] if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": stated,
            "ignore": [name for name in self._linear if name not in covered],
        }

    def _scheme(self, module: str) -> dict[str, Any]:
        spec, inputs = self._source.grids[module], self._source.weights.shape(f"{module}.weight")[1]
        scheme: dict[str, Any] = {
            "weights": {"num_bits": spec.bits, "type": "int", "symmetric": spec.symmetric, "dynamic": False},
            "format": INT if self._in_bytes(module) else PACK,
        }
        scheme["weights"] |= _strategy(spec, inputs)
        # What feeds an embedding are indices: they are never rounded.
        if spec.activations != "float" and module in self._linear:
            static = spec.activations == "static"
            scheme["input_activations"] = {
                "num_bits": 8,
                "type": "int",
                "symmetric": not static,
                "dynamic": not static,
                "strategy": "tensor" if static else "token",
            }
        return scheme


def _strategy(spec: GridSpec, inputs: int) -> dict[str, Any]:
    if not spec.group_size:
        return {"strategy": "channel"}
    if spec.symmetric and inputs % spec.group_size == 0:
        return {"strategy": "group", "group_size": spec.group_size}
    return {"strategy": "block", "block_structure": [1, spec.group_size]}
