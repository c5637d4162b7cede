"""What the two INT8 methods share: which weights get bytes, smoothing, and the walk through a block.

All linear modules of the blocks get symmetric 8-bit weights with a scale per output, embeddings a scale per row; the
products are computed in integers. The modules that share an input are quantized together, on what the ones before have
made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compressor._lazy import lazy
from compressor.machine.processor import weight_bits
from compressor.passes.base import Findings, Needs, Options, Target
from compressor.passes.quantize._weights.quantizer import Quantizer
from compressor.passes.surgery import slots
from compressor.passes.surgery.linears import Sharing, block_names, head_name

if TYPE_CHECKING:
    import torch

    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.passes.quantize._int8.ranges import ChannelRanges
    from compressor.passes.quantize._int8.smooth import Smoothing
    from compressor.passes.quantize._weights.sharings import Halves
    from compressor.passes.quantize._weights.weight_only import QuantizationError
    from compressor.storage.grids import Activations, Grid, GridSpec
    from compressor.walk import BlockView, Change, Walk

else:
    torch = lazy("torch")

# MatMulNBits takes groups of powers of two from 16; a group wider than the matrix would store padding.
_LEAST_GROUP, _LARGEST_GROUP = 16, 128


class Int8Options(Options):
    """Options of both INT8 methods."""

    exclude: tuple[str, ...] = Field((), description="Names of modules to leave as they are; * stands for anything.")
    embedding: Literal["auto", "none", 8] = Field(
        "auto", description="Bits of the embedding tables, a scale per row; auto: 8, but none in safetensors."
    )
    head: Literal["none", 8] = Field(
        8, description="Bits of a language model's output head; a head tied to the embedding takes the embedding's."
    )
    smooth: Literal["auto", "fold", "none"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "auto",
        description="Factors per channel that even inputs out (SmoothQuant): fold puts them where they cost nothing, "
        "auto also multiplies inputs where that more than pays; a number is SmoothQuant's alpha instead of a search.",
    )
    sensitive: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the blocks' weights, those that lose most, whose inputs are not rounded per tensor.",
    )
    reduce_range: Literal["auto"] | bool = Field(
        "auto", description="7-bit weights, for x86 processors without VNNI; auto follows export.target."
    )


class Int8(Quantizer):
    """Base of the INT8 methods.

    Attributes:
        target: what the artifact is for: a graph can multiply an input, `safetensors` cannot.
        levels: largest code of a weight: 127, or 63 for 7-bit weights.
    """

    activations: ClassVar[Activations]

    def __init__(self, options: Any, *, calibration: Literal["takes", "must"] = "takes") -> None:
        """Take validated options; `calibration`: whether the method must see inputs, or looks at what there is."""
        super().__init__(options)
        walks = 2 if options.sensitive else 1
        self.needs = Needs(calibration=calibration, walks=walks, foreseen=not options.sensitive)
        self._spared: set[str] = set()

    # -- the pass protocol -----------------------------------------------------------------------------------------

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` with grids.

        Raises:
            ModelError: the family is not covered.
            UsageError: `exclude` names what the model does not have.
        """
        self.target = target
        bits, self.reason = weight_bits(target.cpu)
        if self.options.reduce_range != "auto":
            bits, self.reason = (7 if self.options.reduce_range else 8), "the recipe's reduce_range"
        self.levels = (1 << (bits - 1)) - 1
        return super().plan(source, target)

    def grids_of(self, source: ModelFolder) -> dict[str, GridSpec]:
        """Return the grids of all linear modules of the blocks, of the embeddings and of the head."""
        from compressor.storage.grids import GridSpec

        spec = GridSpec(8, 0, symmetric=True, activations=self.activations)
        names = block_names(source)
        # Servers that read safetensors look rows up in floats alone (vLLM refuses the model).
        if self.options.embedding == 8 or (self.options.embedding == "auto" and self.target.format != "safetensors"):
            names += embedding_names(source)
        head = head_name(source)
        if self.options.head != "none" and head is not None:
            names.append(head)
        return {name: spec for name in names if not self.excluded(name)}

    def survey(self, walk: Walk, planned: Blueprint) -> Findings:
        """Return the names of the modules to spare, which lose most when the inputs of each group alone are rounded."""
        from compressor.passes.quantize._int8.sensitivity import block_losses, worst

        if not self.options.sensitive:
            return Findings()
        losses = [block_losses(view, self.levels) for view in walk.survey(every=4)]
        return Findings({name: torch.ones(1) for name in worst(walk.source, losses, self.options.sensitive)})

    def begin(self, planned: Blueprint, findings: Findings) -> None:
        """Receive the grids and the modules to spare."""
        self._specs, self._spared = dict(planned.grids), set(findings.tensors)

    @property
    def notes(self) -> list[str]:
        """Say how many bits the weights have, and which modules are spared."""
        found = [f"{self.levels.bit_length() + 1}-bit weights: {self.reason}"]
        if self._spared:
            found.append(f"most sensitive, so their inputs stay floats: {', '.join(sorted(self._spared))}")
        return found

    def change_stem(self, walk: Walk) -> None:
        """Round the embeddings; a tied head is the same matrix."""
        for name in embedding_names(walk.source):
            self._round(walk, name)

    def change_tail(self, walk: Walk) -> None:
        """Round the head."""
        if (name := head_name(walk.source)) is not None:
            self._round(walk, name)

    def _round(self, walk: Walk, name: str) -> None:
        from compressor.storage.grids import fit_rows

        if name in self._specs:
            weight = slots.read(walk.model, name)
            grid = fit_rows(weight, self._specs[name], self.levels)
            slots.write(walk.model, name, grid.rounded(weight))
            walk.grids[name] = grid

    def change_block(self, block: BlockView) -> Change:
        """Quantize one block."""
        from compressor.passes.quantize._weights.sharings import Halves
        from compressor.passes.quantize._weights.weight_only import QuantizationError
        from compressor.walk import Change

        error, smoothed = QuantizationError(), 0
        halves = Halves(block, dense=False)
        for sharing in halves.sharings():
            smoothed += self._quantize(block, halves, sharing, error)
            block.seal()
        specs = {path: grid.spec for path, grid in block.grids.items()}
        spared = sum(block.name_of(path) in self._spared for path in specs)
        figures = {"weight_bits": float(self.levels.bit_length() + 1), "smoothed_inputs": float(smoothed)}
        return Change(block.layer, {**error.figures(), **figures, "spared_modules": float(spared)}, specs)

    # -- one input and its readers ---------------------------------------------------------------------------------

    def input_spec(
        self, spec: GridSpec, ranges: ChannelRanges | None, smoothing: Smoothing, inputs: Callable[[int], torch.Tensor]
    ) -> GridSpec:
        """Return the spec of the grids of modules that share an input, with what is stored about it.

        Args:
            spec: as planned.
            ranges: of the input before smoothing; None where nothing is known.
            smoothing: of the input.
            inputs: the unpadded rows [tokens, width] of batch k as the products read them.
        """
        return spec

    def _quantize(self, block: BlockView, halves: Halves, sharing: Sharing, error: QuantizationError) -> bool:
        """Quantize the modules that read one input; return whether the input was smoothed."""
        from compressor.passes.quantize._int8.smooth import with_factors
        from compressor.passes.surgery.observe import unpadded
        from compressor.storage.grids import fit_rows

        paths = [path for path in sharing.paths if block.name_of(path) in self._specs]
        if not paths:
            return False
        ranges = self._ranges(block, halves, sharing)
        smoothing = self._smooth(block, sharing, ranges)
        factors = smoothing.factors if smoothing.explicit else torch.ones_like(smoothing.factors)

        def inputs(k: int) -> torch.Tensor:
            seen = halves.input_of(block.module, sharing, k) * factors
            return unpadded(seen, block.token_mask(k, like=seen))

        spec = self.input_spec(self._specs[block.name_of(paths[0])], ranges, smoothing, inputs)
        for path in paths:
            before = slots.read(block.module, path)
            if block.name_of(path) in self._spared:
                grid = _weight_only(before)
            else:
                grid = fit_rows(before / factors, spec, self.levels)
                grid = with_factors(grid, factors) if smoothing.explicit else grid
            rounded = grid.rounded(before)
            slots.write(block.module, path, rounded)
            error.add(before, rounded, None)
            block.grids[path] = grid
        return bool((smoothing.factors != 1).any())

    def _ranges(self, block: BlockView, halves: Halves, sharing: Sharing) -> ChannelRanges | None:
        """Return the ranges of a sharing's input: calibrated, else as its norm tells, else None."""
        from compressor.model.modules import submodule
        from compressor.passes.quantize._int8.ranges import ChannelRanges
        from compressor.passes.quantize._int8.smooth import norm_before

        if len(block):
            ranges = ChannelRanges()
            for k in range(len(block)):
                inputs = halves.input_of(block.module, sharing, k)
                ranges.add(inputs, block.token_mask(k, like=inputs), padding=self.activations == "dynamic")
            return ranges
        norm = norm_before(block.family, sharing)
        if norm is None:
            return None
        return ChannelRanges.behind_norm(submodule(block.module, norm), block.family.norm_offset)

    def _smooth(self, block: BlockView, sharing: Sharing, ranges: ChannelRanges | None) -> Smoothing:
        """Fold factors for a sharing's input into the block, or say that the input must be multiplied."""
        from compressor.passes.quantize._int8.smooth import ALPHAS, WORTHWHILE, Smoothing, find_factors, fold

        weight = torch.cat([slots.read(block.module, path) for path in sharing.paths])
        nothing = Smoothing(torch.ones(weight.shape[1], device=weight.device))
        choice = self.options.smooth
        # The inputs of attention's output are means of values: there is little to even out.
        if ranges is None or choice == "none" or sharing.name == "attention_output":
            return nothing
        alphas = (choice,) if isinstance(choice, float) else ALPHAS
        factors, ratio = find_factors(weight, ranges, self.levels, alphas)
        if ratio >= 1.0:
            return nothing
        if fold(block, sharing, factors):
            for path in sharing.paths:
                slots.write(block.module, path, slots.read(block.module, path) / factors)
            return Smoothing(factors)
        spared = any(block.name_of(path) not in self._specs.keys() - self._spared for path in sharing.paths)
        if choice == "fold" or self.target.format == "safetensors" or ratio > WORTHWHILE or spared:
            return nothing
        # The first factor is 1, so that the others can be read back from the grid's scales.
        return Smoothing(factors / factors[0], explicit=True)


def _weight_only(weight: torch.Tensor) -> Grid:
    from compressor.storage.grids import GridSpec, fit_grid

    covering = 1 << (weight.shape[1] - 1).bit_length()
    return fit_grid(weight, GridSpec(8, min(max(covering, _LEAST_GROUP), _LARGEST_GROUP), symmetric=True))


def embedding_names(source: ModelFolder) -> list[str]:
    """Return the module names of the embedding tables (tokens, positions, token types), each once."""
    from compressor.model.modules import base_prefix

    model = source.skeleton()
    prefix = base_prefix(model)
    named = dict(model.named_modules())
    tables = [f"{prefix}{path}" for path in source.family.embeddings]
    return [name for name in tables if name in named and isinstance(named[name], torch.nn.Embedding)]
