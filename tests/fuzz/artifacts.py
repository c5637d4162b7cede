"""Artifacts: one file altered, or a stranger added; the checks of the files, of the graph and of the reports find it.

Of every fourth the hashes are renewed: then the checks may pass, and must not break.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

from compressor.passes import method_options
from compressor.recipe import parse_recipe
from compressor.report import build_report, write_reports
from compressor.report.seal import check_recipe, check_reports
from compressor.verification import Job, _check_artifact, seal
from compressor.verification.manifest import MANIFEST, read_manifest
from compressor.verification.verdict import Check
from tests.fuzz.mutations import alter_bytes, alter_entry, alter_json, alter_text, is_plain, write
from tests.pico import make_pico

_RECIPE = "version: 1\nname: fuzz\npasses: []\nverify: {size_ratio: {max: 2}}\n"


class Missed(AssertionError):
    """An alteration that no check found."""


class Artifacts:
    """Makes altered artifacts and looks at them as `verify` does."""

    codes = (3, 4)
    allowed: tuple[str, ...] = ()

    def __init__(self, scratch: Path) -> None:
        """Make one small artifact with its reports, which passes."""
        self._base = _artifact(scratch / "artifacts")
        if wrong := [check for check in look(self._base) if not check.passed]:
            raise AssertionError(f"the artifact is not right before it is altered: {wrong}")

    def attempt(self, rng: Random, folder: Path) -> str:
        """Look at an altered artifact; raises `Missed`, or what a damaged manifest raises."""
        target = Path(shutil.copytree(self._base, folder / "artifact"))
        what = _alter(rng, target)
        renewed = rng.random() < 0.25
        if renewed:
            _renew(target)
        found = any(not check.passed for check in look(target))
        if not found and _same_content(self._base, target):
            return "passed: only the layout of JSON differs"
        if not found and not renewed:
            raise Missed(f"no check finds it: {what}")
        return "found" if found else "passed with renewed hashes"


def look(folder: Path) -> list[Check]:
    """Return the checks of `verify` but those of outputs, quality and speed."""
    manifest = read_manifest(folder)
    checks, _, _ = _check_artifact(Job(folder, timing=False))
    return [*checks, *check_reports(folder, manifest), *check_recipe(folder, manifest)]


def _artifact(home: Path) -> Path:
    """Export a small model as a run does, with recipe, manifest and reports."""
    from tests.verification.conftest import export

    folder = export(make_pico("llama", home / "model", num_hidden_layers=1), home / "artifact")
    (folder / "recipe.yaml").write_text(_RECIPE)
    manifest = {**read_manifest(folder), "task": "text-generation", "passes": []}
    recipe = parse_recipe(_RECIPE, source="recipe.yaml", options=method_options())
    seal(folder, {**manifest, "recipe": recipe.resolved()})
    size = (folder / "model.onnx").stat().st_size
    side = {"parameters": manifest["parameters"], "bytes": size, "flops": 10, "metrics": {"perplexity": 4.0}}
    bound = {"name": "bounds.size_ratio", "passed": True, "value": 1.0, "bound": {"max": 2.0}}
    report = build_report(
        model={"id": "owner/model", "task": "text-generation"}, dense=side, compressed=side, checks=[bound]
    )
    write_reports(folder, report, _RECIPE)
    return folder


def _alter(rng: Random, folder: Path) -> str:
    """Alter one file, or add one; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if rng.random() < 0.08:
        path = folder / rng.choice(("numpy.py", "notes.txt", "verification/x.bin", ".hidden", "model.onnx.data", "sub"))
        rng.choice((lambda: path.write_bytes(b"x"), lambda: os.mkfifo(path), path.mkdir))()
        return f"{path.name} added"
    path = rng.choice(files)
    before = path.read_bytes()
    way = rng.random()
    if way < 0.15:
        alter_entry(rng, path)
    elif way < 0.5 and path.suffix == ".json":
        write(path, alter_json(rng, before.decode()))
    elif way < 0.5 and path.suffix in (".yaml", ".md", ".xml", ".html"):
        write(path, alter_text(rng, before.decode()))
    else:
        path.write_bytes(alter_bytes(rng, before))
    if is_plain(path) and path.read_bytes() == before:
        path.write_bytes(before + b"\n")
    return f"{path.relative_to(folder)} altered"


def _same_content(base: Path, folder: Path) -> bool:
    """Tell whether the files whose seals cover their content, not their layout, hold the same as before."""
    names = (MANIFEST, "report.json")
    return all(
        is_plain(folder / name) and json.loads((folder / name).read_text()) == json.loads((base / name).read_text())
        for name in names
    ) and any((folder / name).read_bytes() != (base / name).read_bytes() for name in names)


def _renew(folder: Path) -> None:
    """Bring the hashes of the manifest in line with the files, where the manifest can still be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) if is_plain(folder / MANIFEST) else None
    except (ValueError, RecursionError):
        return
    if isinstance(manifest, dict) and all(is_plain(path) for path in folder.rglob("*") if not path.is_dir()):
        seal(folder, {key: value for key, value in manifest.items() if key not in ("seal", "outputs")})
