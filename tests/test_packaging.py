"""What pyproject, constraints and Makefile promise to each other."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_is_pinned_within_its_range(project: dict, pins: dict[str, str]) -> None:
    declared = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    requirements = [r for r in map(Requirement, declared) if r.name != project["name"]]
    assert [r.name for r in requirements if canonicalize_name(r.name) not in pins] == []
    assert [str(r) for r in requirements if pins[canonicalize_name(r.name)] not in r.specifier] == []


def test_torch_is_pinned_exactly(pins: dict[str, str]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pins["torch"])


def test_third_party_imports_are_declared(repository: Path, project: dict) -> None:
    import ast
    import sys

    provided = {canonicalize_name(Requirement(r).name) for r in project["dependencies"]}
    provided |= {
        "compressor",
        "yaml",
        "pil",
        "tokenizers",
        *(
            canonicalize_name(Requirement(r).name)
            for extra in ("genai", "sign")
            for r in project["optional-dependencies"][extra]
        ),
    }
    missing = set()
    for root in ("compressor", "exporters"):
        for path in (repository / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                    if canonicalize_name(top) not in provided:
                        missing.add((top, str(path.relative_to(repository))))
    assert missing == set()


@pytest.mark.parametrize("target", ["setup", "demo", "demo-model", "demo-llava", "test", "check", "bench", "clean"])
def test_make_knows_its_targets(repository: Path, target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_no_large_and_no_foreign_files_are_packaged(repository: Path) -> None:
    large = [p.name for p in (repository / "compressor").rglob("*") if p.is_file() and p.stat().st_size > 4_000_000]
    assert large == []
