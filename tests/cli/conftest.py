"""A command line in this process whose methods are toys, and one in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner, Result

from compressor.passes.base import Needs

PLAIN = "version: 1\nname: plain\nmodel: {id: demo}\npasses: []\n"


class Toy(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sparsity: float = Field(ge=0, lt=1, description="Share of channels removed.")
    target: Literal["ffn", "heads"] = Field("ffn", description="What is pruned.")
    layers: list[int] | None = Field(None, description="Which layers; all if absent.")


class Bare(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Method:
    """What a command asks of a method."""

    needs = Needs()

    def __init__(self, options: BaseModel) -> None:
        self.options = options


class ToyMethod(Method):
    name, family, summary, Options = "toy", "structure", "Removes channels.", Toy


class BareMethod(Method):
    name, family, summary, Options = "bare", "quantize", "Rounds weights.", Bare


METHODS = {"toy": ToyMethod, "bare": BareMethod}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Return `cli("run", "r.yaml")`: run it in a fresh folder with the toy methods, 80 columns, no colours."""
    import compressor.pipeline  # noqa: F401  # what imports the methods by name gets the real ones, for later tests too
    from compressor.cli import app

    monkeypatch.setattr("compressor.passes.methods", lambda: METHODS)
    monkeypatch.chdir(tmp_path)
    for name, value in {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("COMPRESSOR_DEBUG", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(item) for item in arguments], prog_name="compressor")

    return call


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An empty module in the place of `compressor.pipeline`, for functions that answer at once."""
    import compressor

    module = ModuleType("compressor.pipeline")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(compressor, "pipeline", module, raising=False)
    return module


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The file of a valid recipe, in the folder where `cli` runs."""
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN)
    return path


@pytest.fixture
def process(repository: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `process("run", ...)`: run `python -m compressor` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(repository), "COLUMNS": "80", "NO_COLOR": "1"}

    def call(*arguments: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["-c", code] if code is not None else ["-m", "compressor"]
        return subprocess.run(
            [sys.executable, *command, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
            check=False,
        )

    return call
