"""Activation sparsity by thresholds: small activations count as 0, and the weights that they would meet are not read.

    at activation   a = act(W_g·x):  a_i = 0 where |a_i| ≤ t  (or ≤ t_i): rows of W_up and columns of W_down are skipped
    at inputs       every matrix:    x_i = 0 where |x_i| ≤ t:             columns of that matrix are skipped

t is the quantile of the magnitudes on calibration tokens at which the wanted share is silent. The calibrated repair
then refits what writes to the residual stream (attention's output matrix, the FFN's writer) by least squares, on the
*gated* activations h' of the changed model, towards the dense model's stream:

    min over W of  E w‖y − W·h'‖² + λ‖W − W_0‖²,   y = dense stream behind the writer − changed stream before it

with w = 1 / mean square of the token's stream, and a bias, where there is one, that takes the mean of what is missed.
Each block so also corrects what silence before it has cost. No gradient step is taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.errors import ModelError
from compressor.passes.base import Needs, Options, PassFamily, Target

if TYPE_CHECKING:
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change


class SilenceOptions(Options):
    """How much is silent."""

    sparsity: float = Field(ge=0, lt=1, description="Share of the gated activations that count as 0, from 0 below 1.")
    repair: bool = Field(
        True, description="Refit the matrices that write to the residual stream to the dense model by least squares."
    )


class ThresholdOptions(SilenceOptions):
    """Options of `thresholds`."""

    at: Literal["activation", "inputs"] = Field(
        "activation",
        description="activation: values of the FFN's activation function; inputs: what every matrix reads.",
    )
    by: Literal["magnitude", "contribution", "largest"] = Field(
        "magnitude",
        description="magnitude: one threshold; contribution: one for each channel, of its value times the mean"
        " magnitude of what it is multiplied by; largest: the largest of each token go on, whatever their size.",
    )
    attention: bool = Field(
        False, description="At activation: gate the inputs of the query and output matrices of attention, too."
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.at == "inputs" and (self.by != "magnitude" or self.attention):
            raise ValueError("at inputs goes with by magnitude alone, and gates attention by itself")
        return self


class Thresholds:
    """See the module."""

    family: ClassVar[PassFamily] = "activation"
    summary: ClassVar[str] = "Let small activations count as 0, so that decoding reads fewer weights; repairs writers."
    Options: ClassVar[type[Options]] = ThresholdOptions
    name: str = "thresholds"

    def __init__(self, options: ThresholdOptions, *, name: str = "thresholds") -> None:
        """Take validated options; `name` is that of the preset."""
        self.options, self.name = options, name
        self.needs = Needs(calibration="must", dense=options.repair)
        self._planned: Blueprint | None = None

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint with the gates; their thresholds are found on calibration data.

        Raises:
            ModelError: the family is not covered, or the model has gates already.
        """
        from compressor.model.blueprint import GateSpec
        from compressor.model.modules import base_prefix, submodule
        from compressor.passes.activation._thresholds import silence

        family = source.family
        if family.residual != "pre" or family.attention.layout != "separate" or "text-generation" not in family.tasks:
            raise ModelError(
                f"{self.name}: family {family.name} is not covered: silent activations save reading weights where a"
                " decoder makes one token at a time, of norms before attention and FFN and separate matrices",
                hint="Covered are llama, mistral, qwen2, qwen3, opt and families built like them.",
            )
        if source.blueprint.gates:
            raise ModelError(f"{self.name}: the model has gates already", hint="Give the model before that.")
        skeleton = source.skeleton()
        prefix = base_prefix(skeleton) + family.blocks
        block = submodule(skeleton, f"{prefix}.0")
        paths = silence.paths(block, family, self.options, self.name)
        each = {path: GateSpec(per_channel=silence.per_channel(path, family, self.options)) for path in paths}
        blocks = range(len(source.shapes.layers))
        gates = {f"{prefix}.{index}.{path}": gate for index in blocks for path, gate in each.items()}
        self._planned = replace(source.blueprint, gates=gates)
        return self._planned

    def change_block(self, block: BlockView) -> Change:
        """Find the thresholds of one block, install its gates, and repair its writers."""
        from compressor.passes.activation._thresholds import silence
        from compressor.walk import Change

        assert self._planned is not None, "planned before blocks are walked"
        gates, figures = silence.silence(block, self.options, self._planned, self.name)
        return Change(block.layer, figures, gates=gates)


METHOD = Thresholds
