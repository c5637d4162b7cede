"""The seal of the reports: compression.json is sealed before verification, the reports are written after it.

`seal` in report.json holds the sha256 of compression.json, of the other three reports and of the rest of report.json.
It finds damage and edits; against somebody who renews it, `check_reports` compares the figures with the artifact, and
renders the other reports again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from compressor import __version__
from compressor.errors import CompressorError, ModelError
from compressor.measure.benchmark import file_bytes
from compressor.passes import method_options
from compressor.recipe import parse_recipe
from compressor.recipe.metrics import GATES
from compressor.report.card import card
from compressor.report.facts import ArtifactFacts
from compressor.report.html import html_report
from compressor.report.junit import junit_report
from compressor.report.schema import Report, build_ratios, check_report
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json
from compressor.storage.tensors import sha256_of
from compressor.verification.companions import differing_keys, flat
from compressor.verification.manifest import MANIFEST
from compressor.verification.verdict import Check, failed, yes

REPORT = "report.json"
_RENDERED = ("report.html", "README.md", "junit.xml")
"""Made from it."""
SEAL = "seal"
_QUOTED = re.compile(r"^(`{3,})yaml\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
"""The recipe in the card."""
_RATIO_ERROR = 1e-6
_PATHS = (("model", "id"), *((s, key) for s in ("calibration", "evaluation") for key in ("data", "prompts")))
"""Section and key of what names a model or data in a recipe."""
_METRICS = ("perplexity", "accuracy", "spearman", "f1", "wer")
_METRIC_ERROR = 0.05
"""Of a task's own metrics, measured again: other processors round products in 8 bits differently."""
_GREEDY_SHARE = 0.25
"""Of the greedy texts, the least that is the same when they are made again."""


def render(folder: Path, report: Mapping[str, Any], recipe_text: str) -> dict[str, str]:
    """Return name -> text of the reports that are made from report.json.

    Args:
        folder: the artifact; what lies in it decides what the card says about loading.
        report: a version 1 report.
        recipe_text: the recipe, word for word.

    Raises:
        VerificationError: `report` is not a version 1 report.
    """
    facts = ArtifactFacts.of(folder, check_report(report).model.task)
    return {
        "report.html": html_report(report),
        "README.md": card(report, recipe_text, facts),
        "junit.xml": junit_report(report),
    }


def encoded(text: str) -> bytes:
    """Return a report as it is written to disk."""
    return text.encode("utf-8", "backslashreplace")


def sealed(folder: Path, report: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return report.json with its seal, which ties it to manifest and other reports; without manifest it has none."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return dict(report)
    seal = {
        "manifest": sha256_of(manifest),
        "files": {name: hashlib.sha256(encoded(text)).hexdigest() for name, text in texts.items()},
        "report": _digest(report),
    }
    return {**report, SEAL: seal}


def check_reports(folder: Path, manifest: Mapping[str, Any]) -> list[Check]:
    """Check the four reports of a finished artifact: there, unchanged, and saying what manifest and files say."""
    missing = [name for name in (REPORT, *_RENDERED) if not _is_own(folder, name)]
    checks = [yes("report.present", not missing, f"missing from the folder: {', '.join(missing)}", damaged=True)]
    if REPORT in missing:
        return checks
    try:
        raw = read_json(folder / REPORT)
        report = check_report(raw)
    except (CompressorError, RecursionError) as error:
        return [*checks, yes("report.readable", False, failed("", error).reason, damaged=isinstance(error, ModelError))]
    checks += [yes("report.readable", True, ""), _check_seal(folder, raw, missing)]
    problems = _disagreements(folder, manifest, report, raw)
    checks.append(yes("report.figures", not problems, "; ".join(problems[:3])))
    return checks if missing else [*checks, *_check_rendered(folder, raw)]


def _check_seal(folder: Path, raw: Mapping[str, Any], missing: list[str]) -> Check:
    stated = raw.get(SEAL)
    seal: dict[str, Any] = stated if isinstance(stated, dict) else {}
    stated = seal.get("files")
    files: dict[str, Any] = stated if isinstance(stated, dict) else {}
    there = [name for name in _RENDERED if name not in missing]
    edited = [name for name in there if files.get(name) != sha256_of(folder / name)] if files else []
    if seal.get("report") != _digest(raw):
        edited.insert(0, REPORT)
    reason = f"edited after verification: {', '.join(edited)}"
    if not edited and (not files or seal.get("manifest") != sha256_of(folder / MANIFEST)):
        return yes("report.seal", False, f"{REPORT} was not written for this {MANIFEST}")
    return yes("report.seal", not edited, reason)


def _check_rendered(folder: Path, raw: Mapping[str, Any]) -> list[Check]:
    """Render the other reports again; only the release that wrote them renders the same bytes."""
    environment = raw.get("environment")
    if not isinstance(environment, dict) or environment.get("compressor") != __version__:
        return []
    try:
        report = {key: value for key, value in raw.items() if key != SEAL}
        quoted = _QUOTED.search((folder / "README.md").read_text(encoding="utf-8"))
        texts = render(folder, report, quoted[2] if quoted else "")
        edited = [name for name, text in texts.items() if (folder / name).read_bytes() != encoded(text)]
    except (CompressorError, OSError, ValueError, RecursionError) as error:
        return [failed("report.rendered", error)]
    return [yes("report.rendered", not edited, f"not what {REPORT} and the recipe give: {', '.join(edited)}")]


def check_recipe(folder: Path, manifest: Mapping[str, Any]) -> list[Check]:
    """Compare recipe.yaml, and the recipe that the card quotes, with the values in the manifest, if that has any."""
    recorded = manifest.get("recipe")
    if not isinstance(recorded, dict):
        return []
    wrong = []
    try:
        quoted = _QUOTED.search(_text(folder, "README.md"))
        texts = {"recipe.yaml": _text(folder, "recipe.yaml"), "README.md": quoted and quoted[2]}
        for name, text in texts.items():
            recipe = parse_recipe(text or "", source=name, options=method_options()).resolved()
            keys = differing_keys(flat(_public(recipe)), flat(_public(recorded)))
            wrong += [f"{name}: {key}" for key in keys]
    except (CompressorError, OSError, ValueError, RecursionError) as error:
        return [failed("recipe.recorded", error)]
    return [yes("recipe.recorded", not wrong, f"not the recipe that {MANIFEST} records: {', '.join(wrong)}")]


def _is_own(folder: Path, name: str) -> bool:
    """Tell whether the folder has a file of that name: no link to outside, and a regular file."""
    try:
        return own_file(folder, name) is not None
    except ModelError:
        return False


def _text(folder: Path, name: str) -> str:
    if (file := own_file(folder, name)) is None:
        raise ModelError(f"{name} is missing")
    return file.read_text(encoding="utf-8")


def _public(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values as JSON holds them, of absolute paths the last part alone."""
    values: dict[str, Any] = json.loads(json.dumps(recipe))
    for section, key in _PATHS:
        part = values.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str) and part[key].startswith(("/", "~")):
            part[key] = PurePath(part[key]).name
    return values


def _disagreements(folder: Path, manifest: Mapping[str, Any], report: Report, raw: Mapping[str, Any]) -> list[str]:
    """Return in what the report differs from the manifest and from the files."""
    compressed, stated = report.compressed, manifest.get("passes")
    entries = stated if isinstance(stated, list) else []
    passes = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    pairs = [
        ("parameters", compressed.parameters, manifest.get("parameters")),
        ("bytes", compressed.bytes, file_bytes(folder)),
        ("task", report.model.task, manifest.get("task")),
        ("passes", [entry.name for entry in report.passes], passes),
    ]
    found = [f"{name}: {REPORT} says {told}, the artifact {real}" for name, told, real in pairs if told != real]
    found += _other_bounds(report, manifest)
    ratios = build_ratios(raw.get("dense") or {}, raw.get("compressed") or {}, {})
    for name in ("bytes", "parameters", "flops"):
        told, real = getattr(report.ratios, name), ratios[name]
        if (told is None) != (real is None) or (told is not None and abs(told - real) > _RATIO_ERROR):
            found.append(f"ratio of {name}: {REPORT} says {told}, its figures give {real}")
    return found


def _other_bounds(report: Report, manifest: Mapping[str, Any]) -> list[str]:
    """Return where checks were held to other bounds than those of the recipe in the manifest, or to none."""
    recipe = manifest.get("recipe")
    stated = recipe.get("verify") if isinstance(recipe, dict) else None
    bounds = stated if isinstance(stated, dict) else {}
    wanted = {name if name in GATES else f"bounds.{name}": limits for name, limits in bounds.items()}
    checks = {check.name: check for check in report.checks}
    found = [f"{name} is bounded by no recipe" for name in checks if name.startswith("bounds.") and name not in wanted]
    for name, limits in wanted.items():
        if not isinstance(limits, dict):  # a gate that is switched off
            continue
        # A gate may be held to each part of a model, with its name in front.
        held = checks.get(name) or next((check for key, check in checks.items() if key.endswith(f".{name}")), None)
        bound = held.bound if held is not None else None
        if held is None:
            found.append(f"{name} is bounded by the recipe, and not among the checks")
        elif bound is not None and any(getattr(bound, key, None) != limit for key, limit in limits.items()):
            found.append(f"{name}: {REPORT} has another bound than the recipe, {limits}")
    return found


def check_metrics_again(folder: Path, measured: Mapping[str, Any]) -> list[Check]:
    """Compare the metrics that report.json states with those measured now, on the recipe's own data.

    Args:
        folder: the artifact.
        measured: metric -> value of the artifact.
    """
    try:
        told = check_report(read_json(folder / REPORT)).compressed.metrics
    except (CompressorError, RecursionError):  # `report.readable` says so
        return []
    wrong = []
    for name in _METRICS:
        old, new = told.get(name), measured.get(name)
        if old is not None and new is not None and abs(old - new) > _METRIC_ERROR * max(abs(old), abs(new), 0.2):
            wrong.append(f"{name}: {REPORT} says {old:.4g}, measured is {new:.4g}")
    return [yes("report.metrics", not wrong, "; ".join(wrong))]


def check_greedy_again(folder: Path, made: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Compare the artifact's greedy samples in report.json with those made now, on the recipe's own data.

    Args:
        folder: the artifact.
        made: as the report has them. On another processor a near tie may end another way, so a text counts by how much
            of its beginning is the same.
    """
    try:
        told = check_report(read_json(folder / REPORT)).greedy
    except (CompressorError, RecursionError):  # `report.readable` says so
        return []
    if not told:  # of an earlier release
        return []
    reason = ""
    if [sample.prompt for sample in told] != [sample["prompt"] for sample in made]:
        reason = f"the greedy samples of {REPORT} have other prompts than the evaluation data"
    else:
        texts = [(old.compressed, new["compressed"]) for old, new in zip(told, made, strict=True)]
        same = sum(len(os.path.commonprefix(pair)) for pair in texts)
        if same < _GREEDY_SHARE * sum(len(new) for _, new in texts):
            reason = f"the artifact goes on from the prompts with other texts than {REPORT} says"
    return [yes("report.greedy", not reason, reason)]


def _digest(report: Mapping[str, Any]) -> str:
    content = {key: value for key, value in report.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
