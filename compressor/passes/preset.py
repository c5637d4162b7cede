"""Presets: a published method that is a choice of options over a mechanism is a few lines, not a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from compressor.passes.base import Pass, PassFamily


class Mechanism(Protocol):
    """A method's class over which there are presets: a pass takes the name of the preset that made it."""

    @property
    def family(self) -> PassFamily: ...  # noqa: D102
    @property
    def Options(self) -> type[BaseModel]: ...  # noqa: D102, N802

    def __call__(self, options: Any, *, name: str) -> Pass:
        """Return the pass with options of the mechanism, called `name`."""


@dataclass(frozen=True)
class Preset:
    """A method that fixes some of a mechanism's options.

    Attributes:
        name: how recipes call it.
        of: the mechanism.
        Options: of the preset; each is an option of the mechanism, too.
        fixed: the mechanism's options that make the method.
        summary: one line for `compressor methods list`.
        paper: where the method was published.
    """

    name: str
    of: Mechanism
    Options: type[BaseModel]
    summary: str
    paper: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> PassFamily:
        """That of the mechanism."""
        return self.of.family

    def __call__(self, options: BaseModel) -> Pass:
        """Return the mechanism's pass with the fixed options and `options`."""
        return self.of(self.of.Options.model_validate({**self.fixed, **options.model_dump()}), name=self.name)
