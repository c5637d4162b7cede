"""Every file imports only from the layers before it (DESIGN: data flows one way)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

WINGS: tuple[str, ...] = (
    "errors",
    "_lazy",
    "_shipped",
    "demo",
    "machine",
    "recipe",
    "architectures",
    "storage",
    "model",
    "data",
    "walk",
    "passes",
    "measure",
    "exporters",
    "verification",
    "pipeline",
    "report",
    "_api",
    "cli",
    "__main__",
)
RANK = {name: rank for rank, name in enumerate(WINGS)}

# (importing file, imported module) -> why it may
EXCEPTIONS = {
    (
        "pipeline.run",
        "report",
    ): "an artifact is whole only with its report, so it is rendered before the folder is renamed",
    ("pipeline.record", "report"): "what a run writes down is a report",
    ("pipeline.judge", "report"): "a verdict is told as a report",
}


def _files(repository: Path) -> Iterator[tuple[str, Path]]:
    """Yield (module below `compressor`, file) of everything that is installed."""
    for root, prefix in ((repository / "compressor", ()), (repository / "exporters", ("exporters",))):
        for path in sorted(root.rglob("*.py")):
            parts = [*prefix, *path.relative_to(root).with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield (module below `compressor`, line) of every import in a file, those inside functions included."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ["compressor", *package][: len(package) + 2 - node.level]
            names = [".".join([*base, *(node.module or alias.name).split(".")]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "compressor":
            names = [f"compressor.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            root, _, below = name.partition(".")
            assert root not in ("exporters", "recipes", "tests"), (
                f"{path}:{node.lineno}: import compressor.{root} instead"
            )
            if root == "compressor" and below:
                yield below, node.lineno


def _top(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_a_layer(repository: Path) -> None:
    unknown = sorted({_top(module) for module, _ in _files(repository) if module} - RANK.keys())
    assert unknown == [], "put new modules into WINGS, above, where DESIGN has them"


def test_imports_point_to_earlier_layers(repository: Path) -> None:
    wrong = []
    for module, path in _files(repository):
        if not module:
            continue  # compressor/__init__.py is the face of the package and may show anything
        for imported, line in _imports(module, path):
            known = {_top(imported), _top(module)} <= RANK.keys()
            if known and RANK[_top(imported)] > RANK[_top(module)] and (module, _top(imported)) not in EXCEPTIONS:
                wrong.append(f"{path.relative_to(repository)}:{line}: {_top(module)} imports {_top(imported)}")
    assert wrong == []


def test_exceptions_are_still_needed(repository: Path) -> None:
    used = {(module, _top(name)) for module, path in _files(repository) for name, _ in _imports(module, path)}
    assert EXCEPTIONS.keys() - used == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import compressor.cli", ["cli"]),
        ("from compressor import cli, recipe", ["cli", "recipe"]),
        ("from compressor.report.terminal import show", ["report.terminal"]),
        ("def f():\n    from ..pipeline import run", ["pipeline"]),
        ("from . import sibling", ["passes.sibling"]),
        ("import json", []),
    ],
)
def test_all_forms_of_import_are_seen(source: str, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "method.py"
    path.write_text(source)
    assert [name for name, _ in _imports("passes.method", path)] == found
