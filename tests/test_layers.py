"""Every file imports only from the layers before it (DESIGN: data flows one way).

The layers are the wings and, inside `passes`, its rooms:

* numerics: tensor mathematics with no model in sight, so nothing of `model`, `data` or `walk` either;
* surgery: reads and writes of modules, by that mathematics;
* base and preset: what a pass is, and a method that fixes options of another;
* the families: methods and their parts; no family imports another, what two of them need goes to the first two rooms;
* the list of methods (`passes` itself), which looks into every family, and apply, which runs a pass.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
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

FAMILIES = ("structure", "tokens", "activation", "quantize")
ROOMS = {"numerics": 0, "surgery": 1, "base": 2, "preset": 2, **dict.fromkeys(FAMILIES, 3), "": 4, "apply": 4}
"""Of `passes`, with their ranks; the folder itself is called ""."""
FORBIDDEN_TO_NUMERICS = {"model", "data", "walk"}

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


def _room(module: str) -> str:
    """Return the room of `passes` that a module below `compressor.passes` belongs to."""
    return f"{module}.".split(".")[1]


def _passes(repository: Path) -> list[tuple[str, Path]]:
    return [(module, path) for module, path in _files(repository) if _top(module) == "passes"]


def test_every_part_of_passes_has_a_room(repository: Path) -> None:
    unknown = sorted({_room(module) for module, _ in _passes(repository)} - ROOMS.keys())
    assert unknown == [], "put new files of passes/ into ROOMS, above, with their rank"


def test_imports_inside_passes_point_to_earlier_rooms(repository: Path) -> None:
    wrong = []
    for module, path in _passes(repository):
        for imported, line in _imports(module, path):
            if _top(imported) == "passes" and ROOMS[_room(imported)] > ROOMS[_room(module)]:
                wrong.append(f"{path.relative_to(repository)}:{line}: {_room(module)} imports {imported}")
    assert wrong == []


def test_no_family_imports_another(repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{line}: {_room(module)} imports {imported}"
        for module, path in _passes(repository)
        if _room(module) in FAMILIES
        for imported, line in _imports(module, path)
        if _top(imported) == "passes" and _room(imported) in set(FAMILIES) - {_room(module)}
    ]
    assert wrong == [], "what two families need goes to passes/numerics or passes/surgery"


def test_numerics_knows_no_model(repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{line}: {imported}"
        for module, path in _passes(repository)
        if _room(module) == "numerics"
        for imported, line in _imports(module, path)
        if _top(imported) in FORBIDDEN_TO_NUMERICS
    ]
    assert wrong == []


def test_no_two_modules_need_each_other(repository: Path) -> None:
    """Not through others either, and not in type comments alone; a package's face may show its parts and be read."""
    files = dict(_files(repository))
    reached = {module: {name for name, _ in _imports(module, path) if name in files} for module, path in files.items()}
    reached = {
        module: {name for name in names if not f"{module}.".startswith(f"{name}.")} for module, names in reached.items()
    }
    for middle in files:  # transitive closure (Warshall)
        for module in files:
            if middle in reached[module]:
                reached[module] = reached[module] | reached[middle]
    circles = sorted(module for module in files if module in reached[module])
    assert circles == []


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


@pytest.mark.parametrize(
    ("file", "source", "broken"),
    [
        ("quantize/_x/y.py", "from compressor.passes.structure._width import fisher", test_no_family_imports_another),
        ("structure/x.py", "def f():\n    from ..quantize import rtn", test_no_family_imports_another),
        ("numerics/x.py", "from compressor.walk.walk import Walk", test_numerics_knows_no_model),
        (
            "numerics/x.py",
            "from compressor.passes.surgery import slots",
            test_imports_inside_passes_point_to_earlier_rooms,
        ),
        ("surgery/x.py", "import compressor.passes.base", test_imports_inside_passes_point_to_earlier_rooms),
        ("base.py", "from compressor.passes.apply import FINDINGS", test_imports_inside_passes_point_to_earlier_rooms),
        ("x.py", "", test_every_part_of_passes_has_a_room),
    ],
)
def test_the_rules_inside_passes_bite(file: str, source: str, broken: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "compressor" / "passes" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    with pytest.raises(AssertionError):
        broken(tmp_path)
