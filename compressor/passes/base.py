"""What a pass is: what it needs, what it plans from the config alone, and what it does to a block inside the walk.

`Pass` is what every method has. The other protocols are optional: a method that has their functions is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from compressor.machine.processor import cpu, target_of

if TYPE_CHECKING:
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change, Walk

PassFamily = Literal["structure", "tokens", "activation", "quantize"]
PASS_FAMILIES: tuple[PassFamily, ...] = ("structure", "tokens", "activation", "quantize")
FORMATS = ("onnx", "ort", "safetensors")


class Options(BaseModel):
    """Base of every method's options: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Needs:
    """What a pass needs, and what is known of its result before it has run.

    Attributes:
        calibration: whether it looks at calibration data: `none`; `takes` it where the recipe has any; `must` have it.
        dense: whether blocks must be shown the dense stream beside the current one.
        walks: how often the blocks are walked, surveys included (for progress and time estimates).
        tokens_per_channel: it looks at an evenly spread part of the calibration data, about so many tokens per channel
            of the widest FFN; None: at all of it.
        foreseen: whether the widths of all layers and the grids of all weights follow from the options and the config.
        dtype: torch name of the type that the artifact's weights get; None leaves it to the recipe.
        formats: what the recipe may export.
        turns_stream: whether it may give the residual stream another basis, so that what enters it from outside of the
            model, such as image features, no longer fits.
    """

    calibration: Literal["none", "takes", "must"] = "none"
    dense: bool = False
    walks: int = 1
    tokens_per_channel: int | None = None
    foreseen: bool = True
    dtype: str | None = None
    formats: tuple[str, ...] = FORMATS
    turns_stream: bool = False


@dataclass(frozen=True)
class Target:
    """What the artifact is for.

    Attributes:
        format: `onnx`, `ort` or `safetensors`.
        graph: of a decoder in ONNX: `auto` or `portable`.
        cpu: features of the processor that will run it (`compressor.machine.processor`), by default of this one; None
            where they are unknown.
    """

    format: str = "onnx"
    graph: str = "auto"
    cpu: Mapping[str, bool] | None = field(default_factory=lambda: cpu()["features"])

    @property
    def processor(self) -> str:
        """The kind of processor that will run it: a name of `compressor.machine.processor.TARGETS`."""
        return target_of(self.cpu)


@dataclass(frozen=True)
class Findings:
    """What a survey has found of the whole model; kept on disk, so that a killed run goes on without it.

    Attributes:
        tensors: by name. What is large and comes once per block is given to `walk.park`, whose entry stands for it.
        every: the blocks are changed by every n-th batch of the calibration data alone.
    """

    tensors: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1


class Pass(Protocol):
    """A method with its options; an instance serves one run over one model.

    A method's file is imported for its name and options alone, so it binds torch through `compressor._lazy.lazy` and
    imports the walk inside functions.

    Attributes:
        name: how recipes call it.
        family: which of the four families it belongs to.
        needs: what it needs with these options.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> PassFamily: ...  # noqa: D102
    @property
    def needs(self) -> Needs: ...  # noqa: D102

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` after the pass, from its config alone.

        Where widths per layer depend on data, their sum is exact.

        Raises:
            RecipeError or ModelError: the options ask for what this model cannot give.
        """

    def change_block(self, block: BlockView) -> Change:
        """Change `block.module` and say what changed; `begin` and `change_stem`, where there are any, were called."""


@runtime_checkable
class Surveys(Protocol):
    """A pass that must know something of the whole model before it changes the first block."""

    def survey(self, walk: Walk, planned: Blueprint) -> Findings:
        """Return what it must know."""

    def begin(self, planned: Blueprint, findings: Findings) -> None:
        """Receive the findings, just made or kept from the run that was killed; tensors are read when asked for."""


@runtime_checkable
class Settles(Protocol):
    """A pass whose blueprint depends on what its survey finds, beyond widths per layer."""

    def settled(self, source: ModelFolder) -> Blueprint:
        """Return the blueprint that the changes lead to; `begin` was called."""


@runtime_checkable
class Explains(Protocol):
    """A pass that decides something by itself.

    Attributes:
        notes: what it has decided, in sentences for the report; known once the blocks are changed.
    """

    @property
    def notes(self) -> Sequence[str]: ...  # noqa: D102


@dataclass(frozen=True)
class Trial:
    """One of the things that a pass has tried before it decided.

    Attributes:
        flops: share of the operations that it looks at which this leaves.
        divergence: from the dense model, KL of the outputs on calibration data in nats.
        name: what people call it; empty for one of many.
        chosen: whether the pass does it.
    """

    flops: float
    divergence: float
    name: str = ""
    chosen: bool = False


@runtime_checkable
class Searches(Protocol):
    """A pass that tries ways of doing what it does.

    Attributes:
        trials: all of them, for the report; known once the blocks are changed, none where there was nothing to search.
    """

    @property
    def trials(self) -> Sequence[Trial]: ...  # noqa: D102


class Method(Protocol):
    """What a method's file defines as `METHOD`: a class, or a `compressor.passes.preset.Preset`.

    Attributes:
        name: how recipes call it.
        family: which of the four families it belongs to.
        summary: one line for `compressor methods list`.
        Options: pydantic model of its options; field descriptions are its help.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> PassFamily: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102
    @property
    def Options(self) -> type[BaseModel]: ...  # noqa: D102, N802

    def __call__(self, options: Any) -> Pass:
        """Return the pass with validated options, an instance of `Options`."""
