"""What all weight-only methods share: options, the walk through a block, grids, embedding and head.

A method is a subclass that says how one weight finds its grid and its values (`quantize`). Weights are quantized in the
order in which they compute: q, k, v; attention's writer; the FFN's readers; its writer. Each of these sees what those
before it have made of its input, so every weight is fitted to the inputs that it will get.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor._lazy import lazy
from compressor.machine.memory import trim_heap
from compressor.passes.base import Findings, Needs, Options
from compressor.passes.quantize._weights.quantizer import Quantizer
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import Sharing, block_names, embedding_name, head_name, linear_paths

if TYPE_CHECKING:
    import torch

    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.passes.numerics.moments import InputStats
    from compressor.passes.numerics.rotation import Projection
    from compressor.passes.quantize._weights.sharings import Halves
    from compressor.storage.grids import Grid, GridSpec
    from compressor.walk import BlockView, Change, Walk
else:
    torch = lazy("torch")

Bits = Literal[2, 4, 8]
AUTO_BITS = (4, 8)
FLOAT_BITS = 32
_LEVEL = "level."
ROUNDING = 1e-3
"""Share of E‖Wx‖² that rounding of inputs may cost without a thought: a fraction of what 4-bit weights cost."""
GroupSize = Literal[16, 32, 64, 128, 256]


class WeightOnlyOptions(Options):
    """Options that every weight-only method has."""

    bits: Bits | Literal["auto"] = Field(
        4, description="Bits of a weight; auto gives 4, 8 or floats to each module by its sensitivity, under `budget`."
    )
    budget: float | None = Field(
        None, gt=0, lt=1, description="bits: auto: bytes of the blocks' matrices, as a share of theirs in float32."
    )
    group_size: GroupSize = Field(
        32, description="Consecutive inputs that share a scale; widths need not be multiples."
    )
    symmetric: bool = Field(False, description="Zero points fixed in the middle; false stores one per group.")
    embedding: Literal["none", 4, 8] = Field("none", description="Bits of the embedding table, rounded to nearest.")
    head: Literal["none", 4, 8] = Field(
        "none", description="Bits of the output head; a head tied to the embedding takes the embedding's."
    )
    exclude: tuple[str, ...] = Field((), description="Names of modules to leave as they are; * stands for anything.")
    accuracy_level: Literal["auto", 0, 4] = Field(
        "auto",
        description="In ONNX Runtime: 4 rounds a block's inputs to 8 bits, which is fast; 0 does not; auto takes 4 but "
        "where that costs much, and more than the weights' own rounding.",
    )

    @model_validator(mode="after")
    def _budgeted(self) -> Self:
        if self.bits == "auto" and self.budget is None:
            raise ValueError("bits: auto needs a budget, the share of float32's bytes to keep, such as budget: 0.2")
        if self.bits != "auto" and self.budget is not None:
            raise ValueError(f"budget is for bits: auto, and bits is {self.bits}; set bits: auto, or leave budget out")
        return self


class WeightOnly(Quantizer):
    """Base of the weight-only methods.

    Attributes:
        observes: whether the method looks at the inputs of the modules.
        frame: coordinates that the changed residual stream has; None: those of the dense one.
    """

    observes: ClassVar[bool] = True

    def __init__(self, options: Any, *, dense: bool = False) -> None:
        """Take validated options; `dense`: whether the method must know what the dense modules give."""
        super().__init__(options)
        self.frame: Projection | None = None
        self._figures: list[dict[str, float]] = []
        chooses = options.bits == "auto"
        self.needs = Needs(
            calibration="must" if self.observes or chooses else "none",
            dense=dense,
            walks=2 if chooses else 1,
            foreseen=not chooses,
        )

    # -- what a method decides -------------------------------------------------------------------------------------

    def quantize(self, weight: torch.Tensor, spec: GridSpec, stats: InputStats | None) -> tuple[Grid, torch.Tensor]:
        """Return the grid of a weight [outputs, inputs] and its values on that grid, float32.

        `stats` are those of the weight's input, None where the method does not look at it.
        """
        raise NotImplementedError

    def prepare_block(self, block: BlockView) -> None:
        """Change weights of a block before they are quantized, without changing what the model computes."""

    def target(self, weight: torch.Tensor, stats: InputStats | None, cross: torch.Tensor | None) -> torch.Tensor:
        """Return what a weight [outputs, inputs] is rounded towards; by default the weight.

        With `needs.dense`, `cross` is E[y xᵀ], y what the weight should make of its inputs x; else it is None.
        """
        return weight

    def token_weights(self, block: BlockView, k: int) -> torch.Tensor | None:
        """Return the importance of the tokens of batch k, [batch, tokens]; None where all count alike."""
        return None

    # -- the pass protocol -----------------------------------------------------------------------------------------

    def grids_of(self, source: ModelFolder) -> dict[str, GridSpec]:
        """Return the grids of all linear modules of the blocks, and of embedding and head where asked for."""
        from compressor.passes.quantize._weights import mixed

        names = [name for name in block_names(source) if not self.excluded(name)]
        if self.options.bits == "auto":
            levels = self._levels(names)
            specs = self._chosen(levels, mixed.assumed(source, levels, self.options.budget))
        else:
            specs = {name: self.spec(name, self.options.bits) for name in names}
        for name, bits in ((embedding_name(source), self.options.embedding), (head_name(source), self.options.head)):
            if name is not None and bits != "none" and not self.excluded(name):
                specs[name] = self.spec(name, bits)
        return specs

    def _levels(self, names: list[str]) -> list[dict[str, GridSpec]]:
        return [{name: self.spec(name, bits) for name in names} for bits in AUTO_BITS]

    @staticmethod
    def _chosen(levels: list[dict[str, GridSpec]], assigned: list[int]) -> dict[str, GridSpec]:
        """Return the specs of the modules that are quantized; level `len(levels)` stands for "not quantized"."""
        pairs = zip(levels[0], assigned, strict=True)
        return {name: levels[level][name] for name, level in pairs if level < len(levels)}

    def spec(self, name: str, bits: int) -> GridSpec:
        """Return the grid spec of the module `name` at a number of bits."""
        from compressor.storage.grids import GridSpec

        o = self.options
        return GridSpec(bits, o.group_size, o.symmetric, accuracy_level=0 if o.accuracy_level == 0 else 4)

    def survey(self, walk: Walk, planned: Blueprint) -> Findings:
        """Return the bits of every module and what they were chosen by, for `bits: auto`; else nothing."""
        if self.options.bits != "auto":
            return Findings()
        from compressor.passes.quantize._weights import mixed

        names = [name for name in block_names(walk.source) if not self.excluded(name)]
        found = mixed.survey_levels(walk, self._levels(names), self.options.budget)
        levels = {f"{_LEVEL}{name}": level for name, level in zip(names, found["levels"], strict=True)}
        return Findings({**levels, "losses": found["losses"]})

    def begin(self, planned: Blueprint, findings: Findings) -> None:
        """Receive the grids: those planned, but for modules whose bits the survey has chosen."""
        chosen = {n.removeprefix(_LEVEL): int(v) for n, v in findings.tensors.items() if n.startswith(_LEVEL)}
        self._specs = {name: spec for name, spec in planned.grids.items() if name not in chosen}
        for name, level in chosen.items():
            if level < len(AUTO_BITS):
                self._specs[name] = self.spec(name, AUTO_BITS[level])
        if chosen:
            rows = findings.tensors["losses"].T.tolist()
            self._figures = [
                {f"loss_at_{bits}_bits": loss for bits, loss in zip(AUTO_BITS, row, strict=True)} for row in rows
            ]

    def change_stem(self, walk: Walk) -> None:
        """Round the embedding, if it is to be quantized; a tied head is the same matrix."""
        self._round(walk, embedding_name(walk.source))

    def change_tail(self, walk: Walk) -> None:
        """Round the head, if it is to be quantized."""
        self._round(walk, head_name(walk.source))

    def _round(self, walk: Walk, name: str | None) -> None:
        from compressor.storage.grids import fit_grid

        if name is None or name not in self._specs:
            return
        weight = slots.read(walk.model, name)
        grid = fit_grid(weight, self._specs[name])
        slots.write(walk.model, name, grid.rounded(weight))
        walk.grids[name] = grid

    def change_block(self, block: BlockView) -> Change:
        """Quantize one block: modules that share an input together, on what the ones before have made of it."""
        from compressor.passes.quantize._weights.sharings import Halves
        from compressor.walk import Change

        self.prepare_block(block)
        error = QuantizationError()
        halves = Halves(block, dense=self.needs.dense, frame=self.frame)
        for sharing in halves.sharings():
            rounds = any(block.name_of(path) in self._specs for path in sharing.paths)
            stats = self._observe(block, halves, sharing) if self.observes and rounds else None
            for path in sharing.paths:
                if block.name_of(path) not in self._specs:
                    continue
                cross = None
                if self.needs.dense and stats is not None:
                    cross = halves.wanted_cross(sharing, path, stats)
                self._quantize_module(block, path, stats, cross, error)
            block.seal()
        specs = {path: grid.spec for path, grid in block.grids.items()}
        return Change(block.layer, {**error.figures(), **self._bits(block), **self._sensitivity(block.index)}, specs)

    def _bits(self, block: BlockView) -> dict[str, float]:
        """Return the mean bits of the weights of a block's linear modules before and after."""
        sizes = {path: slots.read(block.module, path).numel() for path in linear_paths(block.family)}
        kept = {path: block.grids[path].spec.bits if path in block.grids else FLOAT_BITS for path in sizes}
        return {"bits_before": FLOAT_BITS, "bits_after": sum(sizes[p] * kept[p] for p in sizes) / sum(sizes.values())}

    def _sensitivity(self, index: int) -> dict[str, float]:
        return self._figures[index] if self._figures else {}

    def _observe(self, block: BlockView, halves: Halves, sharing: Sharing) -> InputStats:
        """Return the statistics of a sharing's input, and of what its modules should give, if a dense block knows."""
        from compressor.passes.numerics.moments import InputStats
        from compressor.passes.surgery.observe import unpadded

        stats: InputStats | None = None
        for k in range(len(block)):
            importance, inputs = self.token_weights(block, k), halves.input_of(block.module, sharing, k)
            mask = block.token_mask(k, like=inputs)
            stats = stats or InputStats(inputs.shape[-1], self.options.group_size, inputs.device)
            weights = None if importance is None else unpadded(importance[..., None], mask)[:, 0]
            stats.add(unpadded(inputs, mask), weights)
            if self.needs.dense:
                wanted = unpadded(halves.wanted(sharing, k), mask)
                stats.want(wanted, unpadded(inputs, mask), weights)
        assert stats is not None
        trim_heap()  # return what activations have freed before a solver allocates matrices
        return stats

    def _quantize_module(
        self,
        block: BlockView,
        path: str,
        stats: InputStats | None,
        cross: torch.Tensor | None,
        error: QuantizationError,
    ) -> None:
        before = self.target(slots.read(block.module, path), stats, cross)
        grid, values = self.quantize(before, self._specs[block.name_of(path)], stats)
        lost, whole = error.add(before, values, stats)
        tolerated = max(lost, ROUNDING * whole)
        if self.options.accuracy_level == "auto" and stats is not None and stats.rounding_error(before) > tolerated:
            grid = replace(grid, spec=replace(grid.spec, accuracy_level=0))
        slots.write(block.module, path, values)
        block.grids[path] = grid


class QuantizationError:
    """How far quantization moves the outputs of a block's products: E‖(W − W')x‖² over E‖Wx‖², all products together.

    Without statistics of x, inputs of unit variance are assumed.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._lost = self._whole = 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor, stats: InputStats | None) -> tuple[float, float]:
        """See a weight [outputs, inputs] before and after; return E‖(W − W')x‖² and E‖Wx‖²."""
        gram = None if stats is None else stats.gram.to(before.dtype)

        def energy(matrix: torch.Tensor) -> float:
            return float((matrix.square() if gram is None else (matrix @ gram).mul_(matrix)).sum(dtype=torch.float64))

        lost, whole = energy(before - after), energy(before)
        self._lost += lost
        self._whole += whole
        return lost, whole

    def figures(self) -> dict[str, float]:
        """Return the figure for the report."""
        return {"quantization_error": self._lost / self._whole} if self._whole > 0 else {}
