"""What all methods that put weights on grids share: they change no shape, and leave alone what a recipe excludes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import UsageError, did_you_mean
from compressor.passes.base import Needs, Options, PassFamily, Target

if TYPE_CHECKING:
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.storage.grids import GridSpec


class Quantizer:
    """Base of the weight-only and the INT8 methods; an instance serves one run over one model."""

    name: str
    family: ClassVar[PassFamily] = "quantize"
    summary: ClassVar[str]
    Options: ClassVar[type[Options]]
    needs: Needs

    def __init__(self, options: Any) -> None:
        """Take validated options, which have `exclude`."""
        self.options = options
        self._specs: dict[str, GridSpec] = {}

    def grids_of(self, source: ModelFolder) -> dict[str, GridSpec]:
        """Return the grids that weights of `source` will lie on, by module name."""
        raise NotImplementedError

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` with grids: quantization changes nothing else.

        Raises:
            UsageError: `exclude` names what the model does not have.
        """
        _check_names(self.options.exclude, source)
        return replace(source.blueprint, grids=self.grids_of(source))

    def excluded(self, name: str) -> bool:
        """Tell whether the options exclude the module `name`."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.options.exclude)


def _check_names(patterns: Iterable[str], source: ModelFolder) -> None:
    """Raise UsageError where a pattern matches no module that has a matrix."""
    names = [
        name
        for name, module in source.skeleton().named_modules()
        if (weight := getattr(module, "weight", None)) is not None and weight.ndim == 2
    ]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"exclude: '{pattern}' matches no linear module or embedding{did_you_mean(pattern, names)}",
                hint=f"Allowed: names such as {names[0]} and {names[-1]}, with * for any part.",
            )
