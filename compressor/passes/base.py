"""What a pass is: one file per method, which plans shapes without weights and changes blocks inside the walk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

    from compressor.architectures import Shapes
    from compressor.model.folder import ModelFolder
    from compressor.storage.grids import GridSpec
    from compressor.storage.tensors import Entry
    from compressor.walk.walk import BlockView, Change, Walk

PassFamily = Literal["structure", "tokens", "activation", "quantize"]
PASS_FAMILIES: tuple[PassFamily, ...] = ("structure", "tokens", "activation", "quantize")


class Options(BaseModel):
    """Base of every method's options: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pass(Protocol):
    """A method. An instance serves one run over one model; the calls come in the order in which they stand here.

    A method's file is imported for its name and options alone, so it binds torch through `compressor._lazy.lazy` and
    imports `compressor.walk.walk` inside functions.

    Attributes:
        name: how recipes call it.
        family: which of the four families it belongs to.
        summary: one line for `compressor methods list`.
        Options: pydantic model of its options; field descriptions are its help.
        calibrated: whether it looks at calibration data; a recipe of methods that do not needs none.
        needs_dense: whether blocks must be shown the dense stream beside the current one.
        walks: how often the blocks are walked, surveys included (for progress and time estimates).

    A method may have `foreseen`: whether the widths of all layers and the grids of all weights follow from the options
    and the config alone, as they do without it. It may have `notes`, a sequence of sentences: what it decided by
    itself, known after `begin`, for the report.
    """

    name: ClassVar[str]
    family: ClassVar[PassFamily]
    summary: ClassVar[str]
    Options: ClassVar[type[BaseModel]]
    calibrated: ClassVar[bool]
    needs_dense: bool
    walks: int

    def __init__(self, options: Any) -> None:
        """Take validated options, an instance of `Options`."""

    def plan(self, source: ModelFolder) -> Shapes:
        """Return the shapes of `source` after the pass, from its config alone.

        Where widths per layer depend on data, their sum is exact.

        Raises:
            RecipeError or ModelError: the options ask for what this model cannot give.
        """

    def plan_grids(self, source: ModelFolder) -> dict[str, GridSpec]:
        """Return the grids that weights of `source` will lie on, by module name; quantization alone makes any."""

    def survey(self, walk: Walk, planned: Shapes) -> Mapping[str, torch.Tensor | Entry]:
        """Return what the pass must know of the whole model before it changes the first block; kept for resuming.

        What is large and comes once per block is given to `walk.park`, whose entry stands for it.
        """

    def begin(self, source: ModelFolder, planned: Shapes, findings: Mapping[str, torch.Tensor]) -> None:
        """Receive the findings, just made or kept from the run that was killed; each is read when it is asked for."""

    def change_stem(self, walk: Walk) -> None:
        """Change the modules before the first block, in place on `walk.model`."""

    def change_block(self, block: BlockView) -> Change:
        """Change `block.module` and say what changed."""

    def change_tail(self, walk: Walk) -> None:
        """Change the modules after the last block, in place on `walk.model`."""

    def config_updates(self, source: ModelFolder) -> dict[str, Any]:
        """Return config.json keys that the pass changes beside the shapes."""
